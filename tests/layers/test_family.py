"""Layers of the wider family: neighbourhoods, Deformable DETR's attention, stems and downsampling."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from deformvit.layers import (
    ConvStem,
    DeformableDetrAttention,
    DeformablePatchEmbed,
    NeighborhoodAttention,
    PatchEmbed,
    PatchMerging,
)
from deformvit.ops import neighborhood_attn


@pytest.mark.parametrize("hw", [(9, 13), (7, 7), (5, 9), (9, 4), (1, 2)])
@pytest.mark.parametrize("small_map", ["whole", "zeros"])
def test_neighbourhood_layer(hw, small_map):
    layer = NeighborhoodAttention(8, 2, 7, small_map=small_map).double()
    torch.nn.init.normal_(layer.bias_table)
    x = torch.randn(2, 8, *hw, dtype=torch.float64)
    padded = x
    if small_map == "zeros":  # before the projection, so that keys there are its bias
        padded = F.pad(x, (0, max(7 - hw[1], 0), 0, max(7 - hw[0], 0)))
    q, k, v = layer.qkv(padded.movedim(1, -1)).unflatten(-1, (3, 2, 4)).permute(3, 0, 4, 1, 2, 5)
    out = neighborhood_attn(q, k, v, layer.bias_table, 7).permute(0, 2, 3, 1, 4).flatten(3)
    expected = layer.proj(out[:, : hw[0], : hw[1]]).movedim(-1, 1)
    torch.testing.assert_close(layer(x), expected)


def detr_by_definition(layer, x):
    """Query by query, point by point: bilinear weights max(0, 1 - |distance|) over all pixels."""
    batch, dim, height, width = x.shape
    tokens = x.movedim(1, -1)
    offsets = layer.offsets(tokens).reshape(batch, height, width, layer.num_heads, layer.points, 2)
    weights = layer.weights(tokens).reshape(batch, height, width, layer.num_heads, layer.points).softmax(-1)
    values = layer.value(tokens).reshape(batch, height, width, layer.num_heads, -1)
    rows, cols = torch.arange(height), torch.arange(width)
    out = torch.zeros(batch, height, width, dim, dtype=x.dtype)
    for i in range(height):
        for j in range(width):
            y, x_ = i + offsets[:, i, j, ..., 0], j + offsets[:, i, j, ..., 1]  # (B, M, K)
            near_y = (1 - (y[..., None] - rows).abs()).clamp(min=0)
            near_x = (1 - (x_[..., None] - cols).abs()).clamp(min=0)
            mixed = torch.einsum("bmk,bmkh,bmkw,bhwmd->bmd", weights[:, i, j], near_y, near_x, values)
            out[:, i, j] = mixed.flatten(1)
    return layer.proj(out).movedim(-1, 1)


@pytest.mark.parametrize("hw", [(5, 8), (6, 2)])
@pytest.mark.parametrize("points", [1, 4])
def test_deformable_detr_attention(hw, points):
    layer = DeformableDetrAttention(8, 2, points).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 8, *hw, dtype=torch.float64, requires_grad=True)
    results = []
    for function in (layer, lambda x: detr_by_definition(layer, x)):
        out = function(x)
        gradients = torch.autograd.grad(
            (out * torch.arange(out.numel()).reshape(out.shape)).sum(), (x, *layer.parameters())
        )
        results.append((out, *gradients))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


def test_deformable_detr_starts_on_rings():
    layer = DeformableDetrAttention(16, 4, 8)
    places = layer.offsets.bias.reshape(4, 8, 2)
    assert torch.equal(layer.offsets(torch.randn(3, 16)), layer.offsets.bias.expand(3, -1))
    torch.testing.assert_close(places[:, :, :].abs().amax(-1), torch.linspace(1, 7, 8).expand(4, 8))
    assert len({tuple(row.sign().tolist()) for row in places[:, 0].round(decimals=3)}) == 4


@pytest.mark.parametrize("hw", [(8, 12), (7, 9), (1, 3)])
def test_downsampling_halves_and_rounds_up(hw):
    x = torch.randn(2, 6, *hw)
    for layer in (PatchEmbed(6, 10, 2), PatchEmbed(6, 10, 2, 3), PatchMerging(6, 10), DeformablePatchEmbed(6, 10, 2)):
        assert layer(x).shape == (2, 10, -(-hw[0] // 2), -(-hw[1] // 2)), type(layer)
    for layer in (PatchEmbed(6, 10, 2, dense=True), PatchEmbed(6, 10, 2, 3, dense=True)):
        assert layer(x).shape == (2, 10, *hw)


def test_dense_patches_are_the_strided_ones_in_between():
    x = torch.randn(1, 6, 8, 10)
    strided, dense = PatchEmbed(6, 10, 2), PatchEmbed(6, 10, 2, dense=True)
    dense.load_state_dict(strided.state_dict())
    torch.testing.assert_close(dense(x)[:, :, ::2, ::2], strided(x))


@pytest.mark.parametrize("hw", [(32, 48), (33, 50)])
def test_stacked_stem(hw):
    assert ConvStem(3, 8, 4)(torch.randn(1, 3, *hw)).shape == (1, 8, -(-hw[0] // 4), -(-hw[1] // 4))
    assert ConvStem(3, 8, 2)(torch.randn(1, 3, *hw)).shape == (1, 8, -(-hw[0] // 2), -(-hw[1] // 2))


def test_deformable_patches_follow_their_predicted_boxes():
    """An image whose channels are its own coordinates shows where every point was read."""
    height, width, side = 8, 12, 3
    image = torch.stack(
        [torch.arange(height)[:, None].expand(height, width), torch.arange(width).expand(height, width)]
    ).double()[None]
    layer = DeformablePatchEmbed(2, 2 * side * side, 2, side).double()
    layer.proj.weight.data, layer.proj.bias.data = torch.eye(2 * side * side).double(), torch.zeros(18).double()
    layer.norm = torch.nn.Identity()

    def read():  # (rows, cols, 2, side, side)
        return layer(image)[0].permute(1, 2, 0).reshape(height // 2, width // 2, 2, side, side)

    start = read()[1, 2]  # patch (1, 2) has its centre at pixel (2.5, 4.5) and reaches a little over a patch
    reach = 2 * (1 + torch.tensor(0.25).tanh().item())
    torch.testing.assert_close(start[0, :, 0], torch.tensor([2.5 - reach, 2.5, 2.5 + reach]).double())
    torch.testing.assert_close(start[1, 0, :], torch.tensor([4.5 - reach, 4.5, 4.5 + reach]).double())
    with torch.no_grad():
        layer.box.bias.copy_(torch.tensor([100.0, 0.0, -100.0, -100.0]))  # a patch down, smallest box
    moved = read()[1, 2]
    torch.testing.assert_close(moved[0, :, 0], torch.tensor([2.5, 4.5, 6.5]).double())
    torch.testing.assert_close(moved[1, 0, :], torch.tensor([2.5, 4.5, 6.5]).double())
    with torch.no_grad():
        layer.box.bias.copy_(torch.tensor([-100.0, 0.0, -100.0, -100.0]))
    assert read()[0, 0, 0].min() == 0  # clamped to the map


def test_deformable_patches_learn_where_to_look():
    layer = DeformablePatchEmbed(4, 6, 2)
    layer(torch.randn(2, 4, 9, 7)).square().sum().backward()
    for parameter in layer.box.parameters():  # of each of the four predictions
        assert parameter.grad.reshape(4, -1).abs().amax(1).min() > 0
