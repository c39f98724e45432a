"""Backbones: maps of any image size, a norm for each, weights of classifiers."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

from deformvit import UserError, load_model
from deformvit.models import files
from deformvit.systems import Backbone

SIZES = [(70, 101), (33, 64), (64, 64)]


@pytest.mark.parametrize("name", ["dat_nano", "swin_tiny_patch4_window7_224", "resnet18", "convnext_atto"])
@pytest.mark.parametrize("size", SIZES)
def test_maps_have_the_size_of_their_strides(name, size):
    backbone = Backbone(name).eval()
    with torch.inference_mode():
        maps = backbone(torch.randn(2, 3, *size))
    assert backbone.strides == ([2, 4, 8, 16] if name == "dat_nano" else [4, 8, 16, 32])
    for features, channels, stride in zip(maps, backbone.channels, backbone.strides, strict=True):
        assert features.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))


@pytest.mark.parametrize("name", ["dat_nano", "swin_tiny_patch4_window7_224"])
def test_every_map_is_normalised(name):
    with torch.inference_mode():
        maps = Backbone(name).eval()(torch.randn(1, 3, 64, 96))
    for features in maps:
        assert features.mean(1).abs().max() < 1e-4
        torch.testing.assert_close(features.std(1, unbiased=False), torch.ones(features[:, 0].shape), atol=0.1, rtol=0)


def test_chosen_stages_and_nothing_after_them():
    backbone = Backbone("dat_nano", stages=(2, 3))
    assert (backbone.channels, backbone.strides) == ([64, 128], [4, 8])
    assert not any("stages.3" in name or "output_norms.3" in name for name, _ in backbone.named_parameters())
    sum(features.mean() for features in backbone(torch.randn(1, 3, 32, 48))).backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []


def test_of_another_library_only_the_image_is_seen():
    """Images are padded to a multiple of 32; the maps are those of the padded image, cut to the image."""
    torch.manual_seed(3)
    backbone = Backbone("resnet18").eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        whole = backbone(image)
        cut = backbone(image[:, :, :50, :70])
        padded = torch.zeros_like(image)
        padded[:, :, :50, :70] = image[:, :, :50, :70]
        expected = backbone(padded)
    for features, full in zip(cut, expected, strict=True):
        torch.testing.assert_close(features, full[:, :, : features.shape[2], : features.shape[3]])
    assert not torch.allclose(cut[0], whole[0][:, :, : cut[0].shape[2], : cut[0].shape[3]])


def test_classification_weights_of_ours():
    backbone = Backbone("dat_nano", checkpoint="dat_nano.cifar10").eval()
    classifier, _ = load_model("dat_nano.cifar10")
    image = torch.randn(1, 3, 32, 40)
    with torch.inference_mode():
        expected = classifier.forward_intermediates(image, intermediates_only=True)
        maps = backbone(image)
    for features, wanted in zip(maps, expected, strict=True):  # fresh norms: scale 1, shift 0
        wanted = torch.nn.functional.layer_norm(wanted.permute(0, 2, 3, 1), wanted.shape[1:2]).permute(0, 3, 1, 2)
        torch.testing.assert_close(features, wanted, atol=1e-5, rtol=1e-4)


def test_classification_weights_of_timms(tmp_path):
    model = timm.create_model("resnet18", num_classes=7)
    path = tmp_path / "resnet18.safetensors"
    save_file(model.state_dict(), path)
    backbone = Backbone("resnet18", checkpoint=str(path))
    assert torch.equal(backbone.model.state_dict()["layer4.1.conv2.weight"], model.layer4[1].conv2.weight)


def test_tables_are_not_decayed():
    assert any("bias_table" in name for name in Backbone("dat_nano").no_weight_decay())
    swin = Backbone("swin_tiny_patch4_window7_224")
    named = swin.no_weight_decay()
    assert any("relative_position_bias_table" in name for name in named)
    assert named <= {name for name, _ in swin.named_parameters()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "dat_nan"}, "timm knows no model 'dat_nan'"),
        ({"name": "dat_nano", "args": {"depth": 3}}, r"'dat_nano' with \{'depth': 3\} gives no backbone"),
        ({"name": "dat_nano", "stages": (0, 1)}, r"head.stages must be some of \(1, 2, 3, 4\) in order, got \(0, 1\)"),
        ({"name": "dat_nano", "stages": (3, 2)}, r"in order, got \(3, 2\)"),
        ({"name": "dat_nano", "checkpoint": "missing.safetensors"}, "'missing.safetensors': no such file"),
        ({"name": "dat_tiny", "checkpoint": "dat_nano.cifar10"}, "dat_nano.cifar10"),
    ],
)
def test_what_gives_no_backbone_is_told(arguments, message):
    with pytest.raises(UserError, match=message):
        Backbone(**arguments)


def test_another_architecture_is_told(tmp_path):
    tensors = files.open_model_file(files.resolve("dat_nano.cifar10")).tensors()
    path = tmp_path / "cut.safetensors"
    save_file({name: value for name, value in tensors.items() if name != "stem.conv.weight"}, path)
    with pytest.raises(
        UserError, match=r"cut\.safetensors: not the weights of this .*: 1 missing weight \(stem\.conv\.weight\)"
    ):
        Backbone("dat_nano", checkpoint=str(path))
