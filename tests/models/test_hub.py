"""Hub repositories, on a local folder."""

from __future__ import annotations

import json

import pytest
import timm
import torch

from deformvit import UserError, push_to_hub, save_for_hub

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
            from pathlib import Path

            sent["files"] = sorted(path.name for path in Path(folder_path).iterdir())
            return "address"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert push_to_hub(timm.create_model("dat_tiny", **SMALL), "me/mine") == "address"
    assert sent == {"repository": "me/mine", "files": ["README.md", "config.json", "model.safetensors"]}
