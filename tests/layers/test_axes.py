"""The layer on sequences and in volumes: the same code, so the same numbers where one contains the other."""

from __future__ import annotations

import math

import pytest
import torch

from deformvit import DeformableAttention
from deformvit.ops import grid

SIZES = {1: [(13,), (1,), (40,)], 2: [(5, 9)], 3: [(4, 5, 6), (1, 3, 2), (7, 4, 3)]}


def randomise_offsets(layer):
    for name, parameter in layer.named_parameters():
        if "points" in name or "bias" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return layer.double()


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("position", ["relative", "log_cpb", "dwconv", "none"])
@pytest.mark.parametrize("stride", [1, 2])
def test_shapes_and_gradients(axes, position, stride):
    layer = randomise_offsets(DeformableAttention(16, 4, 2, axes=axes, position=position, stride=stride))
    for size in SIZES[axes]:
        x = torch.randn(2, 16, *size, dtype=torch.float64, requires_grad=True)
        out = layer(x)
        assert out.shape == x.shape
        layer.zero_grad()
        out.square().sum().backward()
        assert torch.isfinite(x.grad).all()
        # On an axis of one pixel, sampling is the same everywhere; the bias depends on the displacement nevertheless.
        bias_moves = position in ("relative", "log_cpb") and math.prod(size) > 1
        gradient = layer.points.offset_net[3].weight.grad.flatten(1).abs()  # one row for every axis
        for n, row in zip(size, gradient, strict=True):
            assert (row > 1e-9).all() if n > 1 or bias_moves else (row == 0).all()


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("convention", grid.CONVENTIONS)
def test_gradients_against_finite_differences(axes, convention):
    size = {1: (6,), 3: (2, 3, 2)}[axes]
    layer = randomise_offsets(
        DeformableAttention(4, 2, 2, axes=axes, offset_kernel=3, convention=convention, table_size=(3,) * axes)
    )
    x = torch.randn(1, 4, *size, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()), atol=1e-5, fast_mode=True)


def lifted(layer, axes, axis):
    """The layer on maps (or volumes) of one pixel along every axis but one, with the weights of ``layer``."""
    sizes = [1] * axes
    sizes[axis] = layer.table_size[0]
    other = DeformableAttention(16, 4, 2, axes=axes, offset_kernel=3, table_size=sizes, convention="aligned").double()
    weights = dict(layer.state_dict())
    kernel = torch.zeros(8, 1, *(3,) * axes, dtype=torch.float64)
    kernel[(slice(None), slice(None), *(slice(None) if a == axis else 1 for a in range(axes)))] = weights[
        "points.offset_net.0.weight"
    ]
    weights["points.offset_net.0.weight"] = kernel
    final = torch.zeros(axes, 8, *(1,) * axes, dtype=torch.float64)
    final[axis] = weights["points.offset_net.3.weight"].reshape(8, *(1,) * axes)
    weights["points.offset_net.3.weight"] = final
    weights["bias_table"] = weights["bias_table"].reshape(other.bias_table.shape)
    other.load_state_dict(weights)
    return other


@pytest.mark.parametrize(("axes", "axis"), [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])
def test_a_sequence_is_a_map_or_volume_of_one_pixel(axes, axis):
    layer = randomise_offsets(
        DeformableAttention(16, 4, 2, axes=1, offset_kernel=3, table_size=(9,), convention="aligned")
    )
    x = torch.randn(2, 16, 11, dtype=torch.float64)
    shape = [1] * axes
    shape[axis] = 11
    out = lifted(layer, axes, axis)(x.reshape(2, 16, *shape))
    torch.testing.assert_close(out.reshape(x.shape), layer(x))


def test_volume_table_of_another_size():
    layer = randomise_offsets(DeformableAttention(16, 4, 2, axes=3, table_size=(2, 4, 3)))
    assert layer.bias_table.shape == (4, 3, 7, 5)
    layer.set_table_size((4, 4, 6))
    assert layer.bias_table.shape == (4, 7, 7, 11)
    assert layer(torch.randn(1, 16, 4, 4, 6, dtype=torch.float64)).shape == (1, 16, 4, 4, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"axes": 4}, "axes must be 1, 2 or 3, got 4"),
        ({"axes": 3, "position": "fixed"}, "axes=2; got axes=3"),
        ({"axes": 1, "table_size": (4, 4)}, r"1 positive sizes, got \(4, 4\)"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DeformableAttention(8, 2, **arguments)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"\(B, 16, D, H, W\), got \(2, 16, 4, 4\)"):
        DeformableAttention(16, 4, axes=3)(torch.randn(2, 16, 4, 4))
