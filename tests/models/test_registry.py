"""Every registered model: size, forward, backward, any input size, mixed precision, timm's arguments."""

from __future__ import annotations

import pytest
import timm
import torch

import deformvit  # noqa: F401 - registers the models
from deformvit import DAT
from deformvit.layers import DeformableAttention, ReductionAttention, WindowAttention
from deformvit.models.blocks import stage_specs

NAMES = ["dat_nano", "dat_tiny", "dat_small", "dat_base", "dat_base_384"]
PARAMETERS = {  # paper.md: the released models' counts, to the last one; dat_nano is ours
    "dat_tiny": 28_319_138, "dat_small": 49_700_402, "dat_base": 87_881_632, "dat_base_384": 88_178_272,
}  # fmt: skip
SMALL = {
    "dims": (8, 16, 32, 64),
    "num_heads": (2, 2, 4, 4),
    "groups": (1, 1, 2, 2),
    "depths": (2, 2, 2, 2),
    "num_classes": 5,
}


def test_all_are_registered():
    assert set(timm.list_models("dat_*")) == set(NAMES)


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameters_as_published(name, count):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize(
    ("change", "millions"),
    [  # Tables 6 and 7, parameters as printed; the paper counts the offset network even where offsets are off
        ({"offsets": False, "position": "none"}, 28.28),  # printed: 28.29
        ({"offsets": False}, 28.31),  # printed: 28.32
        ({"position": "none"}, 28.29),
        ({"position": "fixed"}, 29.73),
        ({"position": "dwconv"}, 28.31),
        ({"blocks": ("reduction",) * 2 + ("window deformable",) * 2}, 30.68),
        ({"blocks": ("window deformable",) * 4}, 28.39),
        ({"blocks": ("window shifted",) + ("window deformable",) * 3}, 28.34),
        ({"blocks": ("window shifted",) * 3 + ("window deformable",)}, 28.29),
    ],
)
def test_ablation_rows_have_the_published_size(change, millions):
    with torch.device("meta"):
        model = timm.create_model("dat_tiny", **change)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_backward(name):
    model = timm.create_model(name, num_classes=7, in_chans=2, drop_path_rate=0.0)
    out = model(torch.randn(2, 2, 40, 72))
    assert out.shape == (2, 7)
    out.square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{parameter_name} is unused"
        assert torch.isfinite(parameter.grad).all(), parameter_name


@pytest.mark.parametrize("hw", [(32, 32), (33, 47), (64, 32), (70, 101), (224, 96)])
def test_any_input_size(hw):
    model = timm.create_model("dat_tiny", **SMALL).eval()
    x = torch.randn(1, 3, *hw)
    final, stages = model.forward_intermediates(x)
    assert [tuple(s.shape[2:]) for s in stages] == [tuple(-(-side // r) for side in hw) for r in (4, 8, 16, 32)]
    assert torch.isfinite(final).all()
    assert model(x).shape == (1, 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["dat_nano", "dat_tiny"])
def test_autocast(name, dtype):
    model = timm.create_model(name, **(SMALL if name == "dat_tiny" else {"num_classes": 5}))
    with torch.autocast("cpu", dtype):
        loss = model(torch.randn(2, 3, 48, 64)).float().square().mean()
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_blocks_are_what_they_are_called():
    model = DAT(**SMALL | {"blocks": ("reduction", "window shifted", "window deformable", "deformable")})
    kinds = [[type(block.attn) for block in stage.blocks] for stage in model.stages]
    assert kinds == [
        [ReductionAttention] * 2,
        [WindowAttention] * 2,
        [WindowAttention, DeformableAttention],
        [DeformableAttention] * 2,
    ]  # fmt: skip
    assert [block.attn.shift_size for block in model.stages[1].blocks] == [0, 4]


def test_batch_order_does_not_matter():
    model = timm.create_model("dat_tiny", **SMALL).double().eval()
    x = torch.randn(3, 3, 50, 66, dtype=torch.float64)
    order = torch.tensor([1, 2, 0])
    torch.testing.assert_close(model(x)[order], model(x[order]))


def test_drop_path_rises_linearly():
    model = timm.create_model("dat_tiny", drop_path_rate=0.2, **SMALL)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.2 * i / 7 for i in range(8)])


def test_timm_contract_basics():
    model = timm.create_model("dat_nano", num_classes=10)
    assert model.get_classifier() is model.head.fc
    model.reset_classifier(3)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3)
    model.reset_classifier(0)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 256)
    undecayed = model.no_weight_decay()
    assert undecayed
    assert all(name.endswith("bias_table") for name in undecayed)
    features = timm.create_model("dat_nano", features_only=True, out_indices=(1, 3))
    assert [tuple(f.shape) for f in features(torch.randn(1, 3, 40, 56))] == [(1, 64, 10, 14), (1, 256, 3, 4)]
    early = timm.create_model("dat_nano", features_only=True, out_indices=(0, 1))
    sum(f.sum() for f in early(torch.randn(1, 3, 40, 56))).backward()
    assert all(parameter.grad is not None for parameter in early.parameters())  # what is not needed is gone


def test_checkpointing_changes_nothing():
    model = timm.create_model("dat_nano", num_classes=10)
    x = torch.randn(2, 3, 32, 32)
    gradients = []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        model(x).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for before, after in zip(*gradients, strict=True):
        torch.testing.assert_close(before, after)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": ("window",) * 3}, "blocks must have one value for each of the 4 stages"),
        ({"blocks": ("swin",) * 4}, "unknown block 'swin'"),
        ({"blocks": ("window shifted deformable",) * 4}, "stage 1.*do not repeat evenly to depth 2"),
        ({"groups": (1, 1)}, r"groups must have one value for each of the 4 stages, got \(1, 1\)"),
        ({"position": "rel"}, "'rel'"),
        ({"embed": "conv3"}, "'conv3'"),
        ({"conv_mlp": "dw"}, "'dw'"),
        ({"groups": 3}, "num_heads=4, groups=3"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        DAT(**SMALL | change)


def test_misspelt_argument_is_not_swallowed():
    with pytest.raises(TypeError, match="postion"):
        timm.create_model("dat_tiny", postion="none")


def test_one_value_stands_for_all_stages():
    common = {
        "dim": (1, 2), "num_heads": (1, 1), "window_size": 7, "neighborhood_size": 7, "groups": 1, "stride": (1, 2),
        "reduction": 1, "points": 16, "offset_kernel": 3, "offset_padding": "same", "offset_range": 2.0,
        "bound": "range", "offsets": True, "sampling": "bilinear", "position": "relative", "conv_mlp": "none",
        "local_perception": False, "layer_scale": None,
    }  # fmt: skip
    first, second = stage_specs((2, 4), ("window shifted", ["window", "deformable"]), **common)
    assert (first.window_size, second.stride, first.position) == (7, 2, "relative")
    assert second.blocks == ("window", "deformable") * 2
