"""What model files say of themselves: read back as written, and refused by field where it cannot be true."""

from __future__ import annotations

import json
import socket

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from deformvit import ClassifierDescription, DetectorDescription, SegmenterDescription, load_model, save_model
from deformvit.config import DetectorConfig, SegmenterConfig
from deformvit.errors import DescriptionError
from deformvit.models import descriptions, files
from deformvit.models.descriptions import from_header, to_header
from deformvit.models.files import ModelFileError

DESCRIPTIONS = [
    ClassifierDescription(
        name="dat_nano", args={"img_size": (32, 48), "offset_range": (1.0, 2.0, 2.0, 3.0)}, classes=["a", "b"],
        img_size=40, crop_pct=0.9, resize="square", metrics={"top1": float("nan"), "loss": 2.0},
    ),
    DetectorDescription(
        name="dat_nano", classes=["a"], head=DetectorConfig(system="retinanet", stages=(2, 3)), stages=(2, 3),
        eval_size=99, max_size=301, mean=(0.1, 0.2, 0.3),
    ),
    SegmenterDescription(
        name="swin_tiny_patch4_window7_224", args={"window_size": 8}, classes=["a", "b"],
        head=SegmenterConfig(system="semantic_fpn"), stages=(1, 2, 3, 4), scale=(120, 512), ignore_label=7,
        reduce_zero_label=True,
    ),
]  # fmt: skip


@pytest.mark.parametrize("description", DESCRIPTIONS, ids=lambda d: d.task)
def test_a_description_is_read_as_it_was_written(description):
    again = from_header(json.loads(json.dumps(to_header(description))))
    assert repr(again) == repr(description)  # nan is not equal to itself
    assert type(again) is type(description)


HEADER = to_header(DESCRIPTIONS[0])
DETECTOR = to_header(DESCRIPTIONS[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, "name: expected str, got None"),
        ({"name": "dat_giant"}, "there is no model 'dat_giant'"),
        ({"name": "hf-hub:someone/model"}, "there is no model 'hf-hub:someone/model'"),
        ({"name": "local-dir:/tmp"}, "there is no model 'local-dir:/tmp'"),
        ({"name": "vgg11"}, "vgg11 is not one of the models that a file may name"),
        ({"args": {"pretrained": True}}, "takes no argument 'pretrained' from a file"),
        ({"args": {"pretrained_cfg": {"url": "http://x"}}}, "takes no argument 'pretrained_cfg'"),
        ({"args": {"pretrained_cfg_overlay": {"file": "x"}}}, "takes no argument 'pretrained_cfg_overlay'"),
        ({"args": {"cache_dir": "/"}}, "takes no argument 'cache_dir'"),
        ({"args": {"num_classes": 10**9}}, "takes no argument 'num_classes'"),
        ({"name": "resnet18", "args": {"checkpoint_path": "x"}}, "takes no argument 'checkpoint_path'"),
        ({"name": "resnet18", "args": {"block": "x"}}, "takes no argument 'block'"),
        ({"args": {"depths": [10**9, 1, 1, 1]}}, "args.depths: at most 1e\\+06, got 1000000000"),
        ({"args": {"depths": [999, 999, 1, 1]}}, "args.depths: at most 1000 blocks, got 2000"),
        ({"args": {"window_size": "7"}}, "args.window_size: expected .*, got '7'"),
        ({"args": {"embed": "magic"}}, "args.embed: expected one of patch, conv"),
        ({"args": {"offsets": 1}}, "args.offsets: expected"),
        ({"args": [1]}, "args: expected dict"),
        ({"classes": "ab"}, "classes: expected list"),
        ({"classes": ["a", 1]}, "classes: expected str, got 1"),
        ({"img_size": 0}, "img_size: expected 1 to 8192, got 0"),
        ({"img_size": 10**30}, "img_size: expected 1 to 8192, got a very large number"),
        ({"img_size": 32.0}, "img_size: expected int, got 32.0"),
        ({"img_size": True}, "img_size: expected int, got True"),
        ({"crop_pct": 1.5}, "crop_pct: expected a number above 0 and at most 1, got 1.5"),
        ({"crop_pct": float("nan")}, "crop_pct: expected float, got nan"),
        ({"crop_pct": 10**400}, "crop_pct: expected float, got a very large number"),
        ({"resize": "stretch"}, "resize: expected one of shorter, square, got 'stretch'"),
        ({"mean": [0.5, 0.5]}, "mean: expected three numbers"),
        ({"mean": [0.5, "x", 0.5]}, "mean: expected float, got 'x'"),
        ({"std": [0.5, 0.0, 0.5]}, "std: expected positive numbers"),
        ({"std": [float("inf")] * 3}, "std: expected float, got inf"),
        ({"metrics": {"top1": "high"}}, "metrics.top1: expected float, got 'high'"),
        ({"flavour": 1}, "unknown field flavour"),
    ],
)  # fmt: skip
def test_an_impossible_field_is_named(change, message):
    with pytest.raises(DescriptionError, match=message):
        from_header({**HEADER, **change})


@pytest.mark.parametrize(
    ("system", "message"),
    [
        ([], None),  # nothing said: a classifier
        ("x", "system: expected dict"),
        ({"head": {"system": "yolo"}, "stages": [1]}, "expected one of retinanet, .*, got 'yolo'"),
        ({"head": {"system": "retinanet", "channels": "many"}, "stages": [1]}, "system.head.channels: expected int"),
        ({"head": {"system": "retinanet", "rank": 1}, "stages": [1]}, "unknown field system.head.rank"),
        ({"head": {"system": "retinanet", "channels": 10**9}, "stages": [1]}, "head.channels: at most"),
        ({"head": {"system": "retinanet"}}, "stages is missing"),
        ({"head": {"system": "retinanet"}, "stages": [1], "inputs": {"eval_size": -1}}, "eval_size: expected 0 to"),
        ({"head": {"system": "upernet"}, "stages": [1], "inputs": {"scale": [512]}}, "scale: expected tuple"),
        ({"head": {"system": "upernet"}, "stages": [1], "inputs": {"max_size": 9}}, "unknown field max_size"),
    ],
)
def test_an_impossible_system_is_named(system, message):
    header = {**DETECTOR, "system": system}
    if message is None:
        assert from_header(header).task == "classification"
        return
    with pytest.raises(DescriptionError, match=message):
        from_header(header)


def test_a_header_that_is_not_a_description():
    for header in (None, 3, [], "x", {}):
        with pytest.raises(DescriptionError):
            from_header(header)


def test_what_cannot_be_read_again_is_not_written(tmp_path):
    model = timm.create_model("dat_nano", num_classes=2)
    with pytest.raises(DescriptionError, match="crop_pct"):
        save_model(
            tmp_path / "x.safetensors", model, ClassifierDescription(name="dat_nano", classes=["a", "b"], crop_pct=2)
        )
    assert not list(tmp_path.iterdir())


@pytest.fixture
def hostile(tmp_path):
    """Writes a file with the packaged weights and a changed header."""
    source = files.resolve("dat_nano.cifar10")
    header = to_header(files.open_model_file(source).description)

    def write(**changes):
        path = tmp_path / "stranger.safetensors"
        save_file(load_file(source), path, metadata={"deformvit": json.dumps({**header, **changes})})
        return path

    return write


@pytest.mark.parametrize(
    "changes",
    [
        {"args": {"pretrained": True, "pretrained_cfg": {"url": "http://127.0.0.1:9/x.pth"}}},
        {"name": "resnet18", "args": {"pretrained": True}},
        {"name": "hf-hub:someone/model"},
    ],
)
def test_a_file_asks_no_network(hostile, monkeypatch, changes):
    def connect(*_arguments):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(ModelFileError, match="does not describe a deformvit model"):
        load_model(hostile(**changes))


def test_a_model_that_its_weights_are_not_is_never_allocated(hostile, monkeypatch):
    """Wide layers are refused by their shapes, on the meta device."""
    path = hostile(args={"dims": [4096, 8192, 16384, 32768], "groups": [1, 1, 1, 1]})
    built = []
    monkeypatch.setitem(
        files._BUILDERS, descriptions.ClassifierDescription,
        lambda d, build=files._build_classifier: built.append(build(d)) or built[-1],
    )  # fmt: skip
    with pytest.raises(ModelFileError, match=r"weights do not fit dat_nano: .*stem\.conv\.weight: \(32, 3, 3, 3\)"):
        load_model(path)
    assert [next(model.parameters()).device.type for model in built] == ["meta"]


def test_the_header_is_read_without_the_tensors(monkeypatch):
    path = files.resolve("dat_nano.cifar10")
    opened = files.open_model_file(path)
    assert opened.description.classes[3] == "cat"
    assert opened.shapes["head.fc.weight"] == (10, 256)
    reads = []
    original = files.ModelFile.tensors
    monkeypatch.setattr(files.ModelFile, "tensors", lambda self: reads.append(1) or original(self))
    load_model("dat_nano.cifar10")
    assert len(reads) == 1  # and read once when they are


def test_every_module_that_a_file_may_name_is_timms():
    for module in descriptions.TIMM_MODULES:
        names = timm.list_models(module=module)
        assert names, f"timm has no models in {module}"


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "resnet18", "convnext_atto", "pvt_v2_b0"])
def test_timms_models_go_through_files(tmp_path, name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=2).eval()
    save_model(str(tmp_path / "x.safetensors"), model, ClassifierDescription(name=name, classes=["a", "b"]))
    again, _ = load_model(tmp_path / "x.safetensors")
    x = torch.randn(1, 3, 224, 224)
    assert torch.equal(again(x), model(x))
