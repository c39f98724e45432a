"""Fine-tuning on a folder of images: what is taken from the weights, and what follows from the number of images."""

from __future__ import annotations

import json

import pytest
import timm
import torch
import yaml
from PIL import Image

import deformvit
from deformvit import recipes
from deformvit.config import ClassificationConfig
from deformvit.errors import UserError
from deformvit.models.descriptions import ClassifierDescription
from deformvit.models.released.files import load_checkpoint
from deformvit.tasks import fine_tuning
from deformvit.tasks.classification import Classification
from deformvit_command import main


def photos(root, classes, count=4, size=(40, 48)):
    """A folder of class folders with plain images."""
    generator = torch.Generator().manual_seed(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            colour = torch.randint(0, 256, (3,), generator=generator).tolist()
            Image.new("RGB", size, tuple(colour)).save(root / name / f"{i}.png")
    return root


def folder(root, **model):
    config = recipes.ALL["folder"]()
    assert isinstance(config, ClassificationConfig)
    config.data.root, config.data.workers = str(root), 0
    for name, value in model.items():
        setattr(config.model, name, value)
    return config


def test_the_model_and_its_preprocessing_are_those_of_the_weights(tmp_path):
    config = folder(photos(tmp_path / "photos", ["a", "b"]))
    task = Classification(config)
    described = deformvit.load("dat_nano.cifar10", device="cpu").description
    assert isinstance(described, ClassifierDescription)
    assert (config.model.name, config.data.img_size) == (described.name, described.img_size)
    assert (config.data.mean, config.data.std, config.data.crop_pct) == (
        described.mean,
        described.std,
        described.crop_pct,
    )
    ours, packaged = task.build_model().state_dict(), deformvit.load_model("dat_nano.cifar10")[0].state_dict()
    changed = [
        name for name in packaged if ours[name].shape != packaged[name].shape or (ours[name] != packaged[name]).any()
    ]
    assert changed == ["head.fc.weight", "head.fc.bias"]
    assert task.head == "new, as the weights are of other classes"


def test_a_name_chooses_another_model_and_weights_of_another_are_refused(tmp_path):
    root = photos(tmp_path / "photos", ["a", "b"])
    with pytest.raises(
        UserError, match=r"dat_nano\.cifar10: these weights cannot start a dat_tiny .*none to train from"
    ):
        Classification(folder(root, name="dat_tiny")).build_model()
    config = folder(root, name="dat_tiny", checkpoint="none")
    assert Classification(config).build_model().num_features == 768
    assert config.data.img_size == 224
    config = folder(root, checkpoint="none")
    Classification(config)
    assert (config.model.name, config.run.epochs, config.optim.layer_decay) == ("dat_nano", 150, 0)
    config = folder(root, checkpoint="none")
    config.run.epochs = 3  # chosen or not, without weights there are no layers to spare
    Classification(config)
    assert (config.run.epochs, config.optim.layer_decay) == (3, 0)


def test_weights_of_a_file_without_a_description_need_a_name(tmp_path):
    root = photos(tmp_path / "photos", ["a", "b"])
    torch.save(timm.create_model("dat_nano").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(
        UserError, match=r"weights\.pth: weights that do not say which model they are of; give --model\.name"
    ):
        Classification(folder(root, checkpoint=str(tmp_path / "weights.pth")))
    Classification(folder(root, checkpoint=str(tmp_path / "weights.pth"), name="dat_nano")).build_model()


def test_a_released_file_with_its_yaml_beside_it_needs_no_name(tmp_path, golden):
    root = photos(tmp_path / "photos", ["a", "b"])
    case = golden("dat_tiny")
    torch.save({"model": {k: v.float() for k, v in case.state_dict().items()}}, tmp_path / "dat_tiny.pth")
    (tmp_path / "dat_tiny.yaml").write_text(yaml.safe_dump({"MODEL": {"DAT": case.config}}))
    config = folder(root, checkpoint=str(tmp_path / "dat_tiny.pth"))
    task = Classification(config)
    assert (config.model.name, config.data.img_size, config.data.resize) == ("dat_tiny", 224, "square")
    converted, _ = load_checkpoint(tmp_path / "dat_tiny.pth", config=tmp_path / "dat_tiny.yaml")
    ours, theirs = task.build_model().state_dict(), converted.state_dict()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == ["head.fc.weight", "head.fc.bias"]
    assert task.head == "new, as the weights are of other classes"


@pytest.mark.parametrize("classes", [["cat", "dog"], ["dog", "airplane", "truck"]])
def test_classes_that_the_weights_know_by_name_keep_their_rows(tmp_path, classes):
    task = Classification(folder(photos(tmp_path / "photos", classes)))
    packaged, known = deformvit.load_model("dat_nano.cifar10")
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits, of_all = task.build_model().eval()(x), packaged(x)
    torch.testing.assert_close(logits, of_all[:, [known.classes.index(name) for name in sorted(classes)]])
    assert task.head == f"kept for its {len(classes)} classes of the 10"


def test_as_many_other_classes_have_a_new_classifier_unless_it_is_to_be_kept(tmp_path):
    root = photos(tmp_path / "photos", [f"kind {i}" for i in range(10)])
    kept = deformvit.load_model("dat_nano.cifar10")[0].head.fc.weight
    new, same = Classification(folder(root)), Classification(folder(root, head="keep"))
    assert not torch.equal(new.build_model().head.fc.weight, kept)
    assert torch.equal(same.build_model().head.fc.weight, kept)
    assert (new.head, same.head) == ("new, as the weights are of other classes", "kept")


def test_numbered_classes_of_a_converted_file_are_not_names(tmp_path):
    assert fine_tuning.classifier_rows(["1", "0"], ["0", "1"]) is None
    assert fine_tuning.classifier_rows(["b", "a"], ["a", "b", "c"]) == [1, 0]
    assert fine_tuning.classifier_rows(["b", "d"], ["a", "b", "c"]) is None


def test_other_channels_than_rgb_are_refused_in_a_line(tmp_path, capsys):
    root = photos(tmp_path / "photos", ["a", "b"])
    with pytest.raises(SystemExit):
        main(
            [
                "train",
                "folder",
                "--data.root",
                str(root),
                "--run.output",
                str(tmp_path / "run"),
                "--model.args",
                "in_chans",
                "1",
            ]
        )
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "in_chans" in line]
    assert line == (
        "deformvit: model.args in_chans must be 3, got 1: images are read as RGB, grey ones with three equal channels"
    )


def test_train_folder_needs_no_further_option(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, grey in {"dark": 30, "light": 220}.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(8):
            Image.new("L", (50, 30 + i), grey + i).save(tmp_path / "photos" / name / f"{i}.jpg")
    main(["train", "folder", "--data.root", "photos", "--data.workers", "0"])
    result = deformvit.load("runs/folder", device="cpu")("photos/dark/0.jpg")
    assert result.names[0] == "dark"
    config = json.loads((tmp_path / "runs/folder/config.json").read_text())
    assert (config["run"]["epochs"], config["data"]["batch_size"], config["model"]["name"]) == (30, 14, "dat_nano")


def test_the_rate_that_is_reported_is_that_of_the_classifier_not_the_smallest(tmp_path):
    from deformvit.engine.optim import build_optimizer, current_rate

    config = folder(photos(tmp_path / "photos", ["a", "b"]))
    optimizer = build_optimizer(Classification(config).build_model(), config)
    rates = [group["lr"] * group["lr_scale"] for group in optimizer.param_groups]
    assert min(rates) < 1e-4
    for group in optimizer.param_groups:  # as the schedule sets them
        group["lr"] *= group["lr_scale"]
    assert current_rate(optimizer) == pytest.approx(1e-3)
