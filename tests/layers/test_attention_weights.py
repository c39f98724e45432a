"""Weights and places that figures show give what the layer returns."""

from __future__ import annotations

import pytest
import torch

from deformvit.layers import (
    DeformableAttention,
    DeformableDetrAttention,
    NeighborhoodAttention,
    ReductionAttention,
    WindowAttention,
)
from deformvit.layers.attention_weights import attention_weights
from deformvit.ops import grid

DEFORMABLE = {
    "plain": {},
    "strided": {"stride": 2, "offset_kernel": 3},
    "datpp": {"convention": "datpp", "bound": "clamp"},
    "log_cpb": {"position": "log_cpb"},
    "fixed": {"position": "fixed", "table_size": (5, 7)},
    "no position": {"position": "none"},
    "dwconv": {"position": "dwconv"},
    "no offsets": {"offsets": False},
}
WINDOWS = {"plain": (4, 0, False), "shifted": (4, 2, False), "swin": (4, 2, True), "larger": (20, 0, False),
           "larger, shifted": (16, 8, False), "larger, swin": (16, 8, True)}  # fmt: skip


def randomised(layer):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.3)
    return layer.eval()


def mixed(found, values, size):
    """What weights and places say a layer returns: values (1, C, H, W) read at the keys of every query, mixed."""
    heads, queries = found.weights.shape[:2]
    maps = values.unflatten(1, (heads, -1))[0]
    keys = found.keys.expand(heads, queries, -1, 2)
    read = grid.sample(maps, grid.from_index(keys, size))  # (M, d, Q, N)
    return (read * found.weights[:, None]).sum(-1).flatten(0, 1)[None].unflatten(-1, size)


def positional(layer, x):
    """The depthwise convolution of queries that position="dwconv" adds."""
    if layer.local_conv is None:
        return 0
    return layer.local_conv(layer.q(x.movedim(1, -1)).movedim(-1, 1))


def projected(layer, map_):
    return layer.proj(map_.movedim(1, -1)).movedim(-1, 1)


def values(linear, x, part=slice(None)):
    """Without the linear layer's bias: beyond the border that is added to zeros, and a weighted mean passes it on."""
    return torch.einsum("bchw,dc->bdhw", x, linear.weight[part])


@pytest.mark.parametrize("name", DEFORMABLE)
@pytest.mark.parametrize("size", [(9, 7), (5, 14), (1, 1)])
def test_deformable(name, size):
    layer = randomised(DeformableAttention(16, 4, 2, **DEFORMABLE[name]))
    x = torch.randn(1, 16, *size)
    found = attention_weights(layer, x, torch.arange(size[0] * size[1]))
    # Channels of a group are read at its keys; values then mix the channels of all groups.
    places = grid.from_index(found.keys[::2, 0], size)
    read = grid.sample(x.unflatten(1, (2, -1))[0], places).flatten(0, 1).T  # (N, C)
    v = layer.v(read).unflatten(-1, (4, -1))
    out = torch.einsum("mqn,nmd->mdq", found.weights, v).flatten(0, 1)[None].unflatten(-1, size)
    torch.testing.assert_close(projected(layer, out + positional(layer, x)), layer(x), atol=1e-4, rtol=1e-4)
    assert (found.bias is None) == (DEFORMABLE[name].get("position") in ("none", "dwconv"))


class Fixed(torch.nn.Module):
    """In the place of a layer's deformed points."""

    def __init__(self, points):
        super().__init__()
        self.points = points

    def forward(self, _):
        return self.points


def test_deformable_at_given_points():
    layer = randomised(DeformableAttention(16, 4, 2))
    x, points = torch.randn(1, 16, 6, 9), torch.rand(1, 2, 6, 9, 2) * 2 - 1
    found = attention_weights(layer, x, torch.tensor([3]), points)
    expected = grid.to_index(points[0], (6, 9)).flatten(1, 2).repeat_interleave(2, 0)
    torch.testing.assert_close(found.keys[:, 0], expected)
    layer.points = Fixed(points)
    at_fixed_points = attention_weights(layer, x, torch.tensor([3]))
    torch.testing.assert_close(found.weights, at_fixed_points.weights)
    torch.testing.assert_close(found.bias, at_fixed_points.bias)


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("size", [(9, 7), (5, 14), (8, 12), (1, 1)])
def test_window(name, size):
    layer = randomised(WindowAttention(16, 4, *WINDOWS[name]))
    x = torch.randn(1, 16, *size)
    found = attention_weights(layer, x, torch.arange(size[0] * size[1]))
    dim = slice(32, None)
    out = mixed(found, values(layer.qkv, x, dim), size) + layer.qkv.bias[dim, None, None]
    torch.testing.assert_close(projected(layer, out), layer(x), atol=1e-4, rtol=1e-4)
    assert found.bias.isfinite().all()


@pytest.mark.parametrize("size", [(9, 7), (5, 14), (3, 3)])
def test_neighborhood(size):
    layer = randomised(NeighborhoodAttention(16, 4, 5))
    x = torch.randn(1, 16, *size)
    found = attention_weights(layer, x, torch.arange(size[0] * size[1]))
    dim = slice(32, None)
    out = mixed(found, values(layer.qkv, x, dim), size) + layer.qkv.bias[dim, None, None]
    torch.testing.assert_close(projected(layer, out), layer(x), atol=1e-4, rtol=1e-4)


def test_neighborhood_padded_with_zeros():
    """Padding takes part as keys: the keys lie beyond the map, where values are the linear layer's bias."""
    layer = randomised(NeighborhoodAttention(16, 4, 5, small_map="zeros"))
    x = torch.randn(1, 16, 3, 8)
    found = attention_weights(layer, x, torch.arange(24))
    assert found.weights.shape == (4, 24, 25)
    dim = slice(32, None)
    out = mixed(found, values(layer.qkv, x, dim), (3, 8)) + layer.qkv.bias[dim, None, None]
    torch.testing.assert_close(projected(layer, out), layer(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(9, 7), (4, 14)])
@pytest.mark.parametrize("reduction", [1, 2, 4])
def test_reduction(size, reduction):
    layer = randomised(ReductionAttention(16, 4, reduction))
    x = torch.randn(1, 16, *size)
    found = attention_weights(layer, x, torch.arange(size[0] * size[1]))
    padded = torch.nn.functional.pad(x, (0, -size[1] % reduction, 0, -size[0] % reduction))
    reduced = x if layer.reduce is None else layer.reduce(padded)
    v = (values(layer.kv, reduced, slice(16, None)) + layer.kv.bias[16:, None, None]).flatten(2).unflatten(1, (4, -1))
    out = torch.einsum("mqn,mdn->mdq", found.weights, v[0]).flatten(0, 1)[None].unflatten(-1, size)
    torch.testing.assert_close(projected(layer, out), layer(x), atol=1e-4, rtol=1e-4)
    # The second key stands for the columns from `reduction` on.
    assert found.keys[0, 0, 1].tolist() == [(reduction - 1) / 2, reduction + (reduction - 1) / 2]


@pytest.mark.parametrize("size", [(9, 7), (4, 14)])
def test_deformable_detr(size):
    layer = randomised(DeformableDetrAttention(16, 4, points=3))
    x = torch.randn(1, 16, *size)
    found = attention_weights(layer, x, torch.arange(size[0] * size[1]))
    v = values(layer.value, x) + layer.value.bias[:, None, None]  # beyond the border nothing is read, not even the bias
    out = mixed(found, v, size)
    torch.testing.assert_close(projected(layer, out), layer(x), atol=1e-4, rtol=1e-4)


def test_wrong_arguments_are_told():
    layer = WindowAttention(16, 4)
    with pytest.raises(ValueError, match=r"from 0 to 34 on a map of \(5, 7\), got 35"):
        attention_weights(layer, torch.zeros(1, 16, 5, 7), torch.tensor([3, 35]))
    with pytest.raises(ValueError, match="got a batch of 2"):
        attention_weights(layer, torch.zeros(2, 16, 5, 7), torch.tensor([3]))
    with pytest.raises(TypeError, match="got Linear"):
        attention_weights(torch.nn.Linear(3, 3), torch.zeros(1, 16, 5, 7), torch.tensor([3]))
