"""What queries attend to, and how much: computed again from a layer's input, query by query, for figures.

Layers never hand their attention weights out, as fast kernels never have them. Here they are computed by definition;
a test holds that these weights, at these places, give what the layer returns.
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
"""Layers that :func:`attended` knows."""


@dataclass(frozen=True)
class Attended:
    """What Q chosen queries of one image attend to, with M heads and N keys of each query."""

    keys: Tensor
    """(M, Q, N, 2) places of the keys: fractional (row, column) of the layer's map, (0, 0) being the centre of its
    first pixel. Q is 1 where all queries share them."""
    weights: Tensor
    """(M, Q, N) attention weights, sums 1; 0 for keys that a query must not see."""
    bias: Tensor | None
    """(M, Q, N) position bias among the logits; None in layers without one."""


@singledispatch
def attended(layer: nn.Module, x: Tensor, queries: Tensor, points: Tensor | None = None) -> Attended:  # noqa: ARG001
    """What chosen queries attend to.

    Args:
        layer: one of :data:`LAYERS`.
        x: (1, C, H, W) input of the layer.
        queries: (Q,) pixels of the map, counted row by row.
        points: of a deformable layer: (1, G, H_G, W_G, 2) points, computed by default.

    Raises:
        TypeError: another layer.
        ValueError: a query that is not on the map.
    """
    raise TypeError(f"attended knows {', '.join(kind.__name__ for kind in LAYERS)}, got {type(layer).__name__}")


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


def _places(flat: Tensor, width: int) -> Tensor:
    """Pixels counted row by row -> (row, column)."""
    return torch.stack([flat // width, flat % width], -1).float()


@attended.register
def _deformable(layer: DeformableAttention, x: Tensor, queries: Tensor, points: Tensor | None = None) -> Attended:
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
        shown = log_displacement(flat, size, layer.convention)[:, queries]
        bias = layer.bias_mlp(shown.to(x.dtype)).movedim(-1, 1).flatten(0, 1)
    elif layer.position == "fixed" and layer.bias_table is not None:
        bias = resize_fixed_bias(layer.bias_table, layer.table_size, size, layer.stride)[:, queries]
    elif layer.bias_table is not None:
        bias = position_bias(flat, layer.bias_table, query_tokens(size, layer.convention, flat)[queries])[0]
    if bias is not None:
        bias = bias.float()
        logits = logits + bias
    places = grid.to_index(flat[0].float(), size).repeat_interleave(layer.num_heads // layer.groups, 0)
    return Attended(places[:, None], logits.softmax(-1), bias)


@attended.register
def _window(layer: WindowAttention, x: Tensor, queries: Tensor, _points: Tensor | None = None) -> Attended:
    _check(x, queries)
    tokens = x.to(layer.qkv.weight.dtype).permute(0, 2, 3, 1)
    height, width = tokens.shape[1:3]
    size, shift = window.fit(tokens, layer.window_size, layer.shift_size, layer.swin)
    numbers = torch.arange(1, height * width + 1, device=x.device).reshape(1, height, width, 1)
    cells = window.partition(numbers, size, shift)[..., 0] - 1  # (windows, L); -1 is padding
    where = torch.empty(height * width, dtype=torch.long, device=x.device)
    where[cells[cells >= 0]] = torch.arange(cells.numel(), device=x.device)[cells.flatten() >= 0]
    chosen, slot = where[queries] // cells.shape[1], where[queries] % cells.shape[1]

    qkv = window.partition(tokens, size, shift)[chosen]  # only the windows that are asked for
    q, k, _ = layer.qkv(qkv).unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
    every = torch.arange(len(queries), device=x.device)
    masked = window.bias_and_mask(layer.bias_table, layer.window_size, tokens, size, shift, torch.float32)
    bias = masked.expand(len(cells), -1, -1, -1)[chosen, :, slot]  # (Q, M, L)
    logits = (q[every, :, slot][:, :, None] @ k.transpose(-2, -1))[:, :, 0].float() * q.shape[-1] ** -0.5
    keys = cells[chosen]
    keys = torch.where(keys < 0, queries[:, None], keys)  # padding has no place; its weight is 0
    return Attended(
        _places(keys, width).expand(layer.num_heads, -1, -1, -1),
        (logits + bias).softmax(-1).transpose(0, 1),
        bias.masked_fill(bias.isinf(), 0.0).transpose(0, 1),
    )


@attended.register
def _neighborhood(layer: NeighborhoodAttention, x: Tensor, queries: Tensor, _points: Tensor | None = None) -> Attended:
    _check(x, queries)
    side, width = layer.kernel_size, x.shape[3]
    tokens = x.to(layer.qkv.weight.dtype).permute(0, 2, 3, 1)
    if layer.small_map == "zeros":
        tokens = pad_to(tokens, side)
    query = torch.stack([queries // width, queries % width], -1)

    def seen(axis: int) -> Tensor:  # (Q, k) rows or columns of the keys
        length = tokens.shape[1 + axis]
        span = min(side, length)
        first = (query[:, axis] - side // 2).clamp(0, length - span)
        return first[:, None] + torch.arange(span, device=x.device)

    rows, cols = seen(0), seen(1)
    q, k, _ = layer.qkv(tokens)[0].unflatten(-1, (3, layer.num_heads, -1)).unbind(-3)  # (H, W, M, d)
    near = k[rows[:, :, None], cols[:, None, :]].flatten(1, 2)  # (Q, N, M, d)
    logits = torch.einsum("qmd,qnmd->mqn", q[query[:, 0], query[:, 1]], near).float() * q.shape[-1] ** -0.5
    down, right = rows - query[:, :1] + side - 1, cols - query[:, 1:] + side - 1
    bias = layer.bias_table[:, down[:, :, None], right[:, None, :]].flatten(2).float()
    places = torch.stack(
        [rows[:, :, None].expand(-1, -1, cols.shape[1]), cols[:, None, :].expand(-1, rows.shape[1], -1)], -1
    )
    keys = places.flatten(1, 2).float().expand(layer.num_heads, -1, -1, -1)
    return Attended(keys, (logits + bias).softmax(-1), bias)


@attended.register
def _reduction(layer: ReductionAttention, x: Tensor, queries: Tensor, _points: Tensor | None = None) -> Attended:
    _check(x, queries)
    x, side = x.to(layer.q.weight.dtype), layer.reduction
    reduced = x if layer.reduce is None else layer.reduce(common.pad_to_multiple(x, side))
    q = _heads(layer.q(x.flatten(2).transpose(1, 2)[:, queries]), layer.num_heads)[0]
    k = layer.kv(reduced.flatten(2).transpose(1, 2)).unflatten(-1, (2, layer.num_heads, -1))[0, :, 0].transpose(0, 1)
    logits = (q @ k.transpose(-2, -1)).float() * q.shape[-1] ** -0.5
    cells = _places(torch.arange(k.shape[1], device=x.device), reduced.shape[3]) * side + (side - 1) / 2
    return Attended(cells.expand(layer.num_heads, 1, -1, -1), logits.softmax(-1), None)


@attended.register
def _detr(layer: DeformableDetrAttention, x: Tensor, queries: Tensor, _points: Tensor | None = None) -> Attended:
    _check(x, queries)
    chosen = x.to(layer.value.weight.dtype).flatten(2).transpose(1, 2)[0, queries]
    offsets = layer.offsets(chosen).unflatten(-1, (layer.num_heads, layer.points, 2)).float()
    weights = layer.weights(chosen).unflatten(-1, (layer.num_heads, layer.points)).float().softmax(-1)
    places = _places(queries, x.shape[3])[:, None, None] + offsets
    return Attended(places.transpose(0, 1), weights.transpose(0, 1), None)


def kind(layer: nn.Module) -> str:
    """The name that blocks with this layer have in a model's ``blocks``."""
    if isinstance(layer, WindowAttention):
        return "shifted" if layer.shift_size else "window"
    names: Sequence[tuple[type[nn.Module], str]] = (
        (DeformableAttention, "deformable"), (NeighborhoodAttention, "neighborhood"),
        (ReductionAttention, "reduction"), (DeformableDetrAttention, "deformable_detr"),
    )  # fmt: skip
    return next(name for known, name in names if isinstance(layer, known))
