"""Neighbourhood attention against its definition, key by key."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from deformvit.ops import neighborhood, neighborhood_attn

SIZES = [(9, 11), (7, 7), (16, 5), (3, 20), (1, 1), (2, 3), (23, 17)]


def by_definition(q, k, v, table, kernel):
    """A loop over queries: the window clamp(i - k // 2, 0, L - k), its bias at key - query + k - 1."""
    _, _, height, width, dim = q.shape
    out = torch.empty_like(q)
    for i in range(height):
        top = max(0, min(i - kernel // 2, height - kernel))
        rows = range(top, min(top + kernel, height))
        for j in range(width):
            left = max(0, min(j - kernel // 2, width - kernel))
            cols = range(left, min(left + kernel, width))
            keys = k[:, :, rows.start : rows.stop, cols.start : cols.stop].flatten(2, 3)
            values = v[:, :, rows.start : rows.stop, cols.start : cols.stop].flatten(2, 3)
            logits = keys @ q[:, :, i, j, :, None] * dim**-0.5
            if table is not None:
                bias = table[:, [r - i + kernel - 1 for r in rows]][:, :, [c - j + kernel - 1 for c in cols]]
                logits = logits + bias.flatten(1)[None, :, :, None]
            out[:, :, i, j] = (logits.softmax(2) * values).sum(2)
    return out


def inputs(hw, kernel, heads=2, dim=4):
    shape = (2, heads, *hw, dim)
    tensors = [torch.randn(shape, dtype=torch.float64) for _ in range(3)]
    tensors.append(torch.randn(heads, 2 * kernel - 1, 2 * kernel - 1, dtype=torch.float64))
    return [tensor.requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("hw", SIZES)
@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("tile", [None, 1, 5])
def test_outputs_and_gradients_equal_the_definition(hw, kernel, tile):
    tensors = inputs(hw, kernel)
    results = []
    for function in (lambda *a: neighborhood_attn(*a, kernel, tile=tile), lambda *a: by_definition(*a, kernel)):
        out = function(*tensors)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
        results.append([out, *torch.autograd.grad((out * weights).sum(), tensors)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


def test_without_a_table_and_with_another_scale():
    q, k, v, _ = inputs((6, 9), 3)
    torch.testing.assert_close(neighborhood_attn(q, k, v, None, 3), by_definition(q, k, v, None, 3))
    torch.testing.assert_close(
        neighborhood_attn(q, k, v, None, 3, scale=1.0), by_definition(q * 2, k, v, None, 3)
    )  # d = 4: the default scale is a half


def test_low_precision_error_is_of_the_order_of_rounding():
    q, k, v, table = (tensor.detach() for tensor in inputs((10, 13), 7))
    expected = neighborhood_attn(q, k, v, table, 7)
    low = neighborhood_attn(q.bfloat16(), k.bfloat16(), v.bfloat16(), table.float(), 7)
    assert low.dtype == torch.bfloat16
    assert (low.double() - expected).norm() / expected.norm() < 8 * torch.finfo(torch.bfloat16).eps


def test_wrong_shapes_are_named():
    q, k, v, table = inputs((5, 6), 3)
    with pytest.raises(ValueError, match=r"same shape \(B, M, H, W, d\), got \(2, 2, 5, 6, 4\), \(2, 2, 4, 6, 4\) and"):
        neighborhood_attn(q, k[:, :, 1:], v, table, 3)
    with pytest.raises(ValueError, match="odd and positive, got 4"):
        neighborhood_attn(q, k, v, table, 4)
    with pytest.raises(ValueError, match=r"table must be \(2, 5, 5\), got \(2, 5, 4\)"):
        neighborhood_attn(q, k, v, table[..., 1:], 3)


def products(tensors, kernel, **arguments):
    """Multiply-adds of the attention's matrix products."""
    with FlopCounterMode(display=False) as counter:
        neighborhood_attn(*(t.detach().to("meta") for t in tensors), kernel, **arguments)
    return counter.get_total_flops() // 2


def test_a_block_sets_the_tile():
    """With a tile of one, the products are those of the definition: k x k keys for every query."""
    tensors = inputs((16, 20), 3, heads=2, dim=4)
    by_definition = 2 * 2 * 16 * 20 * 9 * 2 * 4  # images, heads, queries, keys, two products of d
    assert products(tensors, 3, tile=1) == by_definition
    default = products(tensors, 3)
    assert default > by_definition
    with neighborhood.tile_size(1):
        assert products(tensors, 3) == by_definition
        assert products(tensors, 3, tile=7) == default
        with neighborhood.tile_size(7):
            assert products(tensors, 3) == default
        assert products(tensors, 3) == by_definition
    assert products(tensors, 3) == default
    with neighborhood.tile_size(5):
        torch.testing.assert_close(neighborhood_attn(*tensors, 3), neighborhood_attn(*tensors, 3, tile=1))


def test_tiles_that_are_not_positive_are_named():
    with pytest.raises(ValueError, match="tile must be at least 1, got 0"):
        neighborhood.tile_size(0)
    with pytest.raises(ValueError, match="tile must be at least 1, got -3"):
        neighborhood_attn(*inputs((5, 6), 3), 3, tile=-3)
