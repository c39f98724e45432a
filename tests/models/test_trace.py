"""Every kind of attention is recorded, in any network, and no result changes."""

from __future__ import annotations

import pytest
import timm
import torch

from deformvit import DeformableAttention, UserError, record
from deformvit.models.trace import scale_offsets
from deformvit.ops import grid

VARIANTS = {
    "dat_tiny": ("dat_tiny", {}),
    "datpp_tiny": ("datpp_tiny", {}),
    "swin": ("dat_tiny", {"blocks": ("window shifted",) * 4, "shifting": "swin"}),
    "reduction": ("dat_tiny", {"blocks": ("reduction",) * 2 + ("deformable",) * 2}),
    "deformable_detr": (
        "dat_tiny",
        {"blocks": ("window", "window shifted", "window deformable_detr", "deformable_detr")},
    ),
}


def small(name):
    model, args = VARIANTS[name]
    sizes = {"dims": (8, 16, 32, 64), "num_heads": (1, 2, 2, 4), "groups": (1, 1, 2, 2), "depths": (2, 2, 2, 2)}
    torch.manual_seed(0)
    return timm.create_model(model, num_classes=3, **{**sizes, **args}).eval()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("grad", [False, True])
def test_recording_changes_no_result(name, grad):
    model = small(name)
    x = torch.randn(2, 3, 70, 104)
    with torch.set_grad_enabled(grad):
        before = model(x)
        with record(model) as trace:
            during = model(x)
        after = model(x)
    assert torch.equal(before, during)
    assert torch.equal(before, after)
    if grad:
        first = next(model.stem.parameters())
        (one,), (two,) = (torch.autograd.grad(out.sum(), first) for out in (before, during))
        assert torch.equal(one, two)
    number = len(trace.layers)
    model(x)
    assert len(trace.layers) == number
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(layer.x.requires_grad for layer in trace.layers)
    blocks = [block for spec in model.stage_specs for block in spec.blocks if block != "conv"]
    assert [layer.kind for layer in trace.layers] == blocks


@pytest.mark.parametrize("name", VARIANTS)
def test_attention_weights_of_every_layer_sum_to_one(name):
    model = small(name)
    with torch.inference_mode(), record(model) as trace:
        model(torch.randn(2, 3, 70, 104))
    for layer in trace.layers:
        height, width = layer.feature_hw
        attention = layer.attend([0, height * width - 1], image=1)
        assert attention.weights.shape[:2] == (layer.num_heads, 2)
        torch.testing.assert_close(attention.weights.sum(-1), torch.ones(layer.num_heads, 2))
        other = layer.attend([0, height * width - 1], image=0)
        if attention.weights.shape[-1] > 1 and layer.kind != "deformable_detr":  # which begins with equal weights
            assert not torch.equal(attention.weights, other.weights)


def test_records_in_bfloat16():
    model = small("dat_tiny")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), record(model) as trace:
        model(torch.randn(1, 3, 64, 96))
    for layer in trace.deformable:
        assert layer.deformed.dtype == torch.float32
        assert layer.attend([1]).weights.sum(-1).allclose(torch.tensor(1.0))


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0])
def test_scaled_offsets_are_the_offset_range(factor):
    """Compared with the same model built with another range."""
    torch.manual_seed(0)
    model = small("dat_tiny")
    x = torch.randn(2, 3, 70, 104)
    with torch.inference_mode():
        with scale_offsets(model, factor), record(model) as trace:
            scaled = model(x)
        for module in model.modules():
            if hasattr(module, "offset_range"):
                module.offset_range = factor * module.offset_range
        expected = model(x)
    torch.testing.assert_close(scaled, expected, atol=1e-5, rtol=1e-4)
    if factor == 0:
        for layer in trace.deformable:
            torch.testing.assert_close(layer.deformed, layer.reference.expand_as(layer.deformed))


def test_query_at_is_the_inverse_of_pixels():
    model = small("datpp_tiny")
    with torch.inference_mode(), record(model) as trace:
        model(torch.randn(1, 3, 70, 104))
    for layer in trace.layers:
        height, width = layer.feature_hw
        index = torch.tensor([[row, col] for row in range(height) for col in range(width)], dtype=torch.float32)
        for number, place in enumerate(layer.index_pixels(index, (70, 104)).tolist()):
            assert layer.query_at(tuple(place), (70, 104)) == number
    assert trace.layers[0].query_at((-50.0, 1e4), (70, 104)) == trace.layers[0].feature_hw[1] - 1


def test_splat_is_the_adjoint_of_sampling():
    index = torch.rand(40, 2, dtype=torch.float64) * torch.tensor([9.0, 12.0]) - 2  # some outside
    mass = torch.rand(40, dtype=torch.float64)
    image = torch.zeros(1, 1, 6, 9, dtype=torch.float64, requires_grad=True)
    read = grid.sample(image, grid.from_index(index, (6, 9))[None])
    (expected,) = torch.autograd.grad(read, image, mass[None, None])
    torch.testing.assert_close(grid.splat(mass, index, (6, 9)), expected[0, 0])


def test_layers_are_found_by_label_and_by_number():
    """One name for a layer, the same in a detector's backbone; networks of other kinds have paths."""
    model = torch.nn.ModuleDict({"backbone": small("dat_tiny")})
    with torch.inference_mode(), record(model) as trace:
        model["backbone"](torch.randn(1, 3, 64, 64))
    assert [layer.label for layer in trace.layers][-2:] == ["stage 4, block 1", "stage 4, block 2"]
    assert trace.find("stage 4, block 2") is trace.find(" Stage 4,block 2") is trace.find("2") is trace.layers[-1]
    assert trace.find("1") is trace.deformable[0]
    assert trace.find("stage 1, block 2").kind == "shifted"
    for wrong in ("0", "3", "stage 5, block 1", ""):
        with pytest.raises(UserError, match="there is no layer '.*there are stage 1, block 1; stage 1, block 2"):
            trace.find(wrong)
    plain = torch.nn.Sequential(torch.nn.Identity(), DeformableAttention(8, 2, 2))
    with torch.inference_mode(), record(plain) as trace:
        plain(torch.randn(1, 8, 6, 6))
    assert trace.find("1").label == "1"
