"""Model files that describe themselves, and the recorder of points."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from deformvit import ClassifierDescription, DeformableAttention, figures, load_model, record, save_model
from deformvit.models import files
from deformvit.models.files import ModelFileError

CLASSES = ["cat", "dog", "cow"]


@pytest.fixture
def model():
    return timm.create_model("dat_nano", num_classes=3).eval()


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "nano.safetensors"
    save_model(
        path, model, ClassifierDescription(name="dat_nano", classes=CLASSES, img_size=32, metrics={"top1": 50.0})
    )
    return path


def test_round_trip(model, saved):
    loaded, info = load_model(saved)
    assert (info.classes, info.img_size, info.metrics) == (CLASSES, 32, {"top1": 50.0})
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(x), model(x))
    assert not loaded.training


def test_half_precision_is_stored_and_loads_as_float32(model, tmp_path):
    path = tmp_path / "half.safetensors"
    save_model(path, model, ClassifierDescription(name="dat_nano", classes=CLASSES), torch.float16)
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
    loaded, _ = load_model(str(path))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_failed_write_keeps_the_old_file(model, saved, monkeypatch):
    before = saved.read_bytes()

    def half_written(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(files, "save_file", half_written)
    with pytest.raises(OSError, match="No space left"):
        save_model(saved, model, ClassifierDescription(name="dat_nano", classes=CLASSES))
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_bad_files_are_told(saved, tmp_path):
    with pytest.raises(ModelFileError, match="no such file, and no packaged weights"):
        load_model("dat_nano.mars")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(saved.read_bytes()[:5000])
    with pytest.raises(ModelFileError, match=r"cut\.safetensors: damaged"):
        load_model(str(cut))
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(saved), bare)
    with pytest.raises(ModelFileError, match="no description of its model"):
        load_model(str(bare))
    other = tmp_path / "other.safetensors"
    header = {"deformvit": json.dumps({"name": "dat_nano", "classes": ["a", "b"]})}
    save_file(load_file(saved), other, metadata=header)
    with pytest.raises(ModelFileError, match=r"weights do not fit dat_nano"):
        load_model(str(other))
    save_file(load_file(saved), other, metadata={"deformvit": json.dumps({"nme": "dat_nano"})})
    with pytest.raises(ModelFileError, match="header does not describe"):
        load_model(str(other))


def test_packaged_weights_are_small_and_described():
    assert "dat_nano.cifar10" in files.packaged()
    path = files.resolve("dat_nano.cifar10")
    assert path.stat().st_size <= 8e6
    model, info = load_model("dat_nano.cifar10")
    assert info.classes[3] == "cat"
    assert info.metrics["top1"] > 80
    other = timm.create_model("dat_nano", pretrained=True, num_classes=4, in_chans=1)
    assert torch.equal(other.stages[3].blocks[0].attn.q.weight, model.stages[3].blocks[0].attn.q.weight)
    assert other(torch.randn(1, 1, 40, 32)).shape == (1, 4)
    same = timm.create_model("dat_nano.cifar10", pretrained=True).eval()
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(x), same(x))


def test_recording_sees_every_layer_and_changes_nothing(model):
    x = torch.randn(2, 3, 40, 56)
    before = model(x)
    with record(model) as trace:
        during = model(x)
    assert torch.equal(before, during)
    deformable = [name for name, module in model.named_modules() if type(module).__name__ == "DeformableAttention"]
    assert [layer.name for layer in trace.deformable] == deformable
    for layer in trace.deformable:
        assert layer.deformed.shape[2:] == layer.reference.shape
        assert layer.deformed.shape[0] == 2
    model(x)
    assert len(trace.deformable) == len(deformable)  # nothing is recorded outside
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["dat_nano", "dat_tiny"])
def test_points_lie_where_the_network_sees(name):
    """A pixel of a map is drawn in the middle of the image pixels that can change it."""
    model = timm.create_model(name, num_classes=3).eval()
    for stage, (stride, first) in enumerate(model.stage_geometry().values()):
        image = torch.zeros(1, 3, 128, 256, requires_grad=True)
        x = model.stem.conv(image)
        for i in range(1, stage + 1):
            x = model.stages[i].downsample.conv(x)
        row, col = x.shape[2] // 2, x.shape[3] // 4
        x[0, :, row, col].sum().backward()
        seen = image.grad.abs().sum((0, 1)).nonzero().float()
        centre = (seen.amin(0) + seen.amax(0) + 1) / 2
        assert centre.tolist() == [row * stride + first, col * stride + first]


def test_points_in_image_pixels(model):
    with record(model) as trace:
        model(torch.randn(1, 3, 32, 64))
    layer = trace.deformable[0]
    assert layer.feature_hw == (8, 16)
    corners = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    assert layer.pixels(corners, (32, 64)).tolist() == [[0.5, 0.5], [28.5, 60.5]]


def test_points_of_a_layer_in_another_network():
    network = torch.nn.Sequential(torch.nn.AvgPool2d(4), DeformableAttention(8, 2, 2))
    with record(network) as trace:
        network(torch.randn(1, 8, 32, 64))
    (layer,) = trace.deformable
    assert (layer.name, layer.feature_hw) == ("1", (8, 16))
    corners = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    assert layer.pixels(corners, (32, 64)).tolist() == [[2.0, 2.0], [30.0, 62.0]]
    assert figures.points(torch.rand(3, 32, 64), trace.deformable, title="$a$.png $b").axes


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("dat_tiny", {}, [(4, 2.0), (8, 4.0), (16, 8.0), (32, 16.0)]),
        ("datpp_tiny", {}, [(4, 0.5), (8, 0.5), (16, 0.5), (32, 0.5)]),
        ("dat_tiny", {"output_stride": 16}, [(4, 2.0), (8, 4.0), (16, 8.0), (16, 16.0)]),
        ("dat_tiny", {"downsample": "conv"}, [(4, 2.0), (8, 2.0), (16, 2.0), (32, 2.0)]),
    ],
)
def test_where_features_lie_in_the_image(name, change, expected):
    """The centre of what a pixel of each map sees of the image, its embeddings taken as plain averages."""
    model = timm.create_model(name, dims=(2, 4, 8, 16), num_heads=1, groups=1, depths=(2,) * 4, **change).double()
    assert list(model.stage_geometry().values()) == expected
    for module in model.modules():
        for child, layer in module.named_children():
            if "norm" in child or child == "act":
                setattr(module, child, torch.nn.Identity())
            elif isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.ones_(layer.weight)
    x = torch.zeros(1, 3, 256, 256, dtype=torch.float64, requires_grad=True)
    features = model.stem(x)
    for (stride, first), stage in zip(expected, model.stages, strict=True):
        features = stage.downsample(features)
        row, col = (features.shape[2] // 2, features.shape[3] // 2 - 1)
        (seen,) = torch.autograd.grad(features[0, 0, row, col], x, retain_graph=True)
        seen = seen[0, 0] / seen[0, 0].sum()
        pixels = torch.arange(256, dtype=torch.float64) + 0.5
        centre = (seen.sum(1) @ pixels).item(), (seen.sum(0) @ pixels).item()
        assert centre == pytest.approx((first + stride * row, first + stride * col))


def test_points_inside_a_feature_extractor_keep_their_place():
    model = timm.create_model("datpp_tiny", features_only=True, out_indices=(0, 1)).eval()
    with record(model) as trace, torch.inference_mode():
        model(torch.randn(1, 3, 64, 96))
    assert trace.deformable[0].name == "model.stages.0.blocks.1.attn"
    assert (trace.deformable[0].stride, trace.deformable[0].origin) == (4, 0.5)
