"""Hub repositories, on a local folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from deformvit import UserError, load, push_to_hub, save_for_hub

SMALL = {
    "dims": (8, 16, 32, 64), "num_heads": (2, 2, 4, 4), "groups": (1, 1, 2, 2), "depths": (2, 2, 2, 2),
    "num_classes": 3, "drop_path_rate": 0.1,
}  # fmt: skip


def test_saved_and_loaded(tmp_path):
    model = timm.create_model("datpp_tiny", img_size=(64, 96), **SMALL).eval()
    save_for_hub(model, tmp_path / "repo", classes=["cat", "dog", "fox"])
    again = timm.create_model(f"local-dir:{tmp_path / 'repo'}", pretrained=True).eval()
    x = torch.randn(1, 3, 70, 50)
    assert torch.equal(again(x), model(x))
    assert again.img_size == (64, 96)
    assert tuple(again.pretrained_cfg["input_size"]) == (3, 64, 96)
    config = json.loads((tmp_path / "repo" / "config.json").read_text())
    assert config["label_names"] == ["cat", "dog", "fox"]
    assert "num_classes" not in config["model_args"]  # transformers passes it as well, and calls twice the same
    assert "drop_path_rate" not in config["model_args"]
    assert "library_name: timm" in (tmp_path / "repo" / "README.md").read_text()


def test_given_configuration_replaces_the_models(tmp_path):
    model = timm.create_model("dat_tiny", **SMALL).eval()
    before = dict(model.pretrained_cfg)
    given = {
        "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 96, 96], "crop_pct": 0.75, "license": "mit",
        "paper_name": "ours",
    }  # fmt: skip
    save_for_hub(model, tmp_path, classes=["cat", "dog", "fox"], config=given)
    assert model.pretrained_cfg == before
    stored = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    assert {name: stored[name] for name in given} == given
    assert stored["interpolation"] == before["interpolation"]  # what is not given is the model's
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    told = timm.data.resolve_model_data_config(again)
    assert (told["mean"], told["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert (told["input_size"], told["crop_pct"]) == ((3, 96, 96), 0.75)
    predictor = load(tmp_path, device="cpu")
    assert (predictor.description.mean, predictor.description.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    grey = Image.new("RGB", (50, 60), (51, 51, 51))
    expected = torch.tensor([(0.2 - 0.1) / 0.4, (0.2 - 0.2) / 0.5, (0.2 - 0.3) / 0.6])
    torch.testing.assert_close(predictor.transform(grey), expected[:, None, None].expand(3, 96, 96))


def test_other_classes_and_channels(tmp_path):
    if not hasattr(timm.models, "get_model_args"):
        pytest.skip(f"timm {timm.__version__} loads local folders as they are, without adapting them")
    save_for_hub(timm.create_model("dat_tiny", **SMALL), tmp_path)
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=7, in_chans=1)
    assert other(torch.randn(1, 1, 64, 64)).shape == (1, 7)


def test_changed_size_is_kept(tmp_path):
    model = timm.create_model("dat_tiny", **SMALL).eval()
    model.set_input_size(96, window_size=5)
    save_for_hub(model, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, 3, 96, 96)
    assert torch.equal(again(x), model(x))


def test_wrong_use_is_told(tmp_path):
    model = timm.create_model("dat_tiny", **SMALL)
    with pytest.raises(UserError, match="2 class names, but the model has 3"):
        save_for_hub(model, tmp_path / "repo", classes=["a", "b"])
    with pytest.raises(UserError, match="timm.create_model, got Linear"):
        save_for_hub(torch.nn.Linear(2, 2), tmp_path / "repo")
    assert not (tmp_path / "repo").exists()


def test_upload_sends_the_same_folder(monkeypatch):
    sent = {}

    class Api:
        def create_repo(self, repository, private, exist_ok):
            sent["repository"] = repository

        def upload_folder(self, repo_id, folder_path):
            sent["files"] = sorted(path.name for path in Path(folder_path).iterdir())
            sent["mean"] = json.loads((Path(folder_path) / "config.json").read_text())["pretrained_cfg"]["mean"]
            return "address"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert push_to_hub(timm.create_model("dat_tiny", **SMALL), "me/mine", mean=[0.1, 0.2, 0.3]) == "address"
    written = ["README.md", "config.json", "model.safetensors"]
    assert sent == {"repository": "me/mine", "files": written, "mean": [0.1, 0.2, 0.3]}
