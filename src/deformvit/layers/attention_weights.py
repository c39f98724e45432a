"""Attention weights of chosen queries, computed from a layer's input for figures.

Layers do not return their attention weights, because fast kernels never materialise them. Here they are computed by
definition. A test holds that averaging the values at these keys with these weights gives what the layer returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor, nn

from deformvit.layers import common
from deformvit.layers.deformable import POOL, DeformableAttention, resize_fixed_bias
from deformvit.layers.detr import DeformableDetrAttention
from deformvit.layers.neighborhood import NeighborhoodAttention, pad_to
from deformvit.layers.pyramid import ReductionAttention
from deformvit.layers.window import WindowAttention
from deformvit.ops import grid, log_displacement, window
from deformvit.ops.deformable.bias import position_bias, query_tokens

LAYERS = (
    DeformableAttention, WindowAttention, NeighborhoodAttention, ReductionAttention, DeformableDetrAttention,
)  # fmt: skip
"""The layers that :func:`attention_weights` supports."""


@dataclass(frozen=True)
class QueryAttention:
    """Keys and attention weights of Q chosen queries of one image, with M heads and N keys of each query."""

    keys: Tensor
    """(M, Q, N, 2) positions of the keys: fractional (row, column) of the layer's map; (0, 0) is the centre of its
    first pixel. Q is 1 where all queries share the keys."""
    weights: Tensor
    """(M, Q, N) attention weights; they sum to 1 over the keys and are 0 for masked keys."""
    bias: Tensor | None
    """(M, Q, N) position bias, a part of the logits; None in layers without one."""


@singledispatch
def attention_weights(layer: nn.Module, x: Tensor, queries: Tensor, points: Tensor | None = None) -> QueryAttention:  # noqa: ARG001
    """Keys and attention weights of chosen queries.

    Args:
        layer: one of :data:`LAYERS`.
        x: (1, C, H, W) input of the layer.
        queries: (Q,) pixels of the map, counted row by row.
        points: (1, G, H_G, W_G, 2) deformed points of a deformable layer; by default those that the layer computes.

    Raises:
        TypeError: a layer that is not supported.
        ValueError: several images, or a query outside the map.
    """
    raise TypeError(f"expected one of {', '.join(kind.__name__ for kind in LAYERS)}, got {type(layer).__name__}")


def _check(x: Tensor, queries: Tensor) -> None:
    count = x[0, 0].numel()
    if x.shape[0] != 1:
        raise ValueError(f"x must hold one image, got a batch of {x.shape[0]}")
    if queries.numel() and not 0 <= int(queries.min()) <= int(queries.max()) < count:
        wrong = queries[(queries < 0) | (queries >= count)][0]
        raise ValueError(f"queries must be from 0 to {count - 1} on a map of {tuple(x.shape[2:])}, got {int(wrong)}")


def _heads(tokens: Tensor, heads: int) -> Tensor:
    """(..., N, C) -> (..., M, N, d)."""
    return tokens.unflatten(-1, (heads, -1)).transpose(-3, -2)


def _row_column(flat: Tensor, width: int) -> Tensor:
    """(...) pixels counted row by row -> (..., 2) row and column."""
    return torch.stack([flat // width, flat % width], -1).float()


@attention_weights.register
def _deformable(layer: DeformableAttention, x: Tensor, queries: Tensor, points: Tensor | None = None) -> QueryAttention:
    _check(x, queries)
    x, size = x.to(layer.q.weight.dtype), x.shape[2:]
    tokens = layer.q(x.movedim(1, -1))
    pos = layer.points(tokens.movedim(-1, 1)) if points is None else points
    if layer.sampling == "pooled":
        sampled = POOL[layer.axes](x, layer.stride, layer.stride, ceil_mode=True)
    else:
        grouped = x.unflatten(1, (layer.groups, -1)).flatten(0, 1)
        sampled = grid.sample(grouped, pos.flatten(0, 1)).unflatten(0, (-1, layer.groups)).flatten(1, 2)
    k = _heads(layer.k(sampled.flatten(2).transpose(1, 2)), layer.num_heads)[0]
    q = _heads(tokens.flatten(1, -2)[:, queries], layer.num_heads)[0]
    logits = (q @ k.transpose(-2, -1)).float() * q.shape[-1] ** -0.5
    flat, bias = pos.flatten(2, -2), None
    if layer.bias_mlp is not None:
        displacement = log_displacement(flat, size, layer.convention)[:, queries]
        bias = layer.bias_mlp(displacement.to(x.dtype)).movedim(-1, 1).flatten(0, 1)
    elif layer.position == "fixed" and layer.bias_table is not None:
        bias = resize_fixed_bias(layer.bias_table, layer.table_size, size, layer.stride)[:, queries]
    elif layer.bias_table is not None:
        bias = position_bias(flat, layer.bias_table, query_tokens(size, layer.convention, flat)[queries])[0]
    if bias is not None:
        bias = bias.float()
        logits = logits + bias
    keys = grid.to_index(flat[0].float(), size).repeat_interleave(layer.num_heads // layer.groups, 0)
    return QueryAttention(keys[:, None], logits.softmax(-1), bias)


@attention_weights.register
def _window(layer: WindowAttention, x: Tensor, queries: Tensor, _points: Tensor | None = None) -> QueryAttention:
    _check(x, queries)
    tokens = x.to(layer.qkv.weight.dtype).permute(0, 2, 3, 1)
    height, width = tokens.shape[1:3]
    size, shift = window.fit(tokens, layer.window_size, layer.shift_size, layer.swin)
    pixels = torch.arange(1, height * width + 1, device=x.device).reshape(1, height, width, 1)
    cells = window.partition(pixels, size, shift)[..., 0] - 1  # (windows, L) pixel of each token; -1 is padding
    token_of_pixel = torch.empty(height * width, dtype=torch.long, device=x.device)
    token_of_pixel[cells[cells >= 0]] = torch.arange(cells.numel(), device=x.device)[cells.flatten() >= 0]
    chosen, slot = token_of_pixel[queries] // cells.shape[1], token_of_pixel[queries] % cells.shape[1]

    qkv = window.partition(tokens, size, shift)[chosen]  # only the windows of the chosen queries
    q, k, _ = layer.qkv(qkv).unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
    each = torch.arange(len(queries), device=x.device)
    masked_bias = window.bias_and_mask(layer.bias_table, layer.window_size, tokens, size, shift, torch.float32)
    bias = masked_bias.expand(len(cells), -1, -1, -1)[chosen, :, slot]  # (Q, M, L)
    logits = (q[each, :, slot][:, :, None] @ k.transpose(-2, -1))[:, :, 0].float() * q.shape[-1] ** -0.5
    keys = cells[chosen]
    keys = torch.where(keys < 0, queries[:, None], keys)  # padding is not on the map; its weight is 0
    return QueryAttention(
        _row_column(keys, width).expand(layer.num_heads, -1, -1, -1),
        (logits + bias).softmax(-1).transpose(0, 1),
        bias.masked_fill(bias.isinf(), 0.0).transpose(0, 1),
    )


@attention_weights.register
def _neighborhood(
    layer: NeighborhoodAttention, x: Tensor, queries: Tensor, _points: Tensor | None = None
) -> QueryAttention:
    _check(x, queries)
    side, width = layer.kernel_size, x.shape[3]
    tokens = x.to(layer.qkv.weight.dtype).permute(0, 2, 3, 1)
    if layer.small_map == "zeros":
        tokens = pad_to(tokens, side)
    query = torch.stack([queries // width, queries % width], -1)

    def key_range(axis: int) -> Tensor:  # (Q, k) rows or columns of the keys
        length = tokens.shape[1 + axis]
        span = min(side, length)
        first = (query[:, axis] - side // 2).clamp(0, length - span)
        return first[:, None] + torch.arange(span, device=x.device)

    rows, cols = key_range(0), key_range(1)
    q, k, _ = layer.qkv(tokens)[0].unflatten(-1, (3, layer.num_heads, -1)).unbind(-3)  # (H, W, M, d)
    k = k[rows[:, :, None], cols[:, None, :]].flatten(1, 2)  # (Q, N, M, d)
    logits = torch.einsum("qmd,qnmd->mqn", q[query[:, 0], query[:, 1]], k).float() * q.shape[-1] ** -0.5
    down, right = rows - query[:, :1] + side - 1, cols - query[:, 1:] + side - 1
    bias = layer.bias_table[:, down[:, :, None], right[:, None, :]].flatten(2).float()
    keys = torch.stack(
        [rows[:, :, None].expand(-1, -1, cols.shape[1]), cols[:, None, :].expand(-1, rows.shape[1], -1)], -1
    )
    keys = keys.flatten(1, 2).float().expand(layer.num_heads, -1, -1, -1)
    return QueryAttention(keys, (logits + bias).softmax(-1), bias)


@attention_weights.register
def _reduction(layer: ReductionAttention, x: Tensor, queries: Tensor, _points: Tensor | None = None) -> QueryAttention:
    _check(x, queries)
    x, side = x.to(layer.q.weight.dtype), layer.reduction
    reduced = x if layer.reduce is None else layer.reduce(common.pad_to_multiple(x, side))
    q = _heads(layer.q(x.flatten(2).transpose(1, 2)[:, queries]), layer.num_heads)[0]
    k = layer.kv(reduced.flatten(2).transpose(1, 2)).unflatten(-1, (2, layer.num_heads, -1))[0, :, 0].transpose(0, 1)
    logits = (q @ k.transpose(-2, -1)).float() * q.shape[-1] ** -0.5
    cells = _row_column(torch.arange(k.shape[1], device=x.device), reduced.shape[3]) * side + (side - 1) / 2
    return QueryAttention(cells.expand(layer.num_heads, 1, -1, -1), logits.softmax(-1), None)


@attention_weights.register
def _detr(layer: DeformableDetrAttention, x: Tensor, queries: Tensor, _points: Tensor | None = None) -> QueryAttention:
    _check(x, queries)
    chosen = x.to(layer.value.weight.dtype).flatten(2).transpose(1, 2)[0, queries]
    offsets = layer.offsets(chosen).unflatten(-1, (layer.num_heads, layer.points, 2)).float()
    weights = layer.weights(chosen).unflatten(-1, (layer.num_heads, layer.points)).float().softmax(-1)
    keys = _row_column(queries, x.shape[3])[:, None, None] + offsets
    return QueryAttention(keys.transpose(0, 1), weights.transpose(0, 1), None)


def layer_kind(layer: nn.Module) -> str:
    """The name of this layer among a model's ``blocks``: "window", "shifted", "deformable" and so on."""
    if isinstance(layer, WindowAttention):
        return "shifted" if layer.shift_size else "window"
    names: Sequence[tuple[type[nn.Module], str]] = (
        (DeformableAttention, "deformable"), (NeighborhoodAttention, "neighborhood"),
        (ReductionAttention, "reduction"), (DeformableDetrAttention, "deformable_detr"),
    )  # fmt: skip
    return next(name for layer_type, name in names if isinstance(layer, layer_type))
