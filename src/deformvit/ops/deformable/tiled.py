"""Deformable attention in linear memory, in plain PyTorch on any device: queries in tiles, recomputed in backward.

The queries of a tile attend to all keys: their bias is read from the table, their attention is one call of PyTorch's.
The size of a tile's attention matrix is limited, so memory does not grow with queries x keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deformvit.ops import grid
from deformvit.ops.deformable.bias import query_tokens
from deformvit.ops.sdpa import sdpa

MAX_TILE_WEIGHTS = 1 << 22
"""Attention weights of a tile, of all images and heads together: 16 MiB in float32. 2^18 and 2^20 were slower."""


def deform_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos: Tensor,
    table: Tensor | None,
    *,
    query_hw: Sequence[int],
    convention: grid.Convention,
    scale: float,
    dropout_p: float,
    max_tile_weights: int = MAX_TILE_WEIGHTS,
) -> Tensor:
    """Equation 6; shapes as in the public function.

    Args:
        max_tile_weights: attention weights of a tile, of all images and heads together; decides speed and memory.
    """
    if table is None:  # there is no bias to materialise, and PyTorch's own attention is linear in memory
        return sdpa(q, k, v, dropout_p=dropout_p, scale=scale)
    queries = query_tokens(query_hw, convention, pos)
    step = max(max_tile_weights // max(q.shape[0] * q.shape[1] * k.shape[2], 1), 1)
    if q.shape[2] <= step:
        return _tile(q, k, v, pos, table, queries, scale, dropout_p)
    return _Tiled.apply(q, k, v, pos, table, queries, step, scale, dropout_p)


class _Tiled(torch.autograd.Function):
    """Attention tile by tile, keeping only the inputs for backward.

    Results are written into tensors allocated before the loop: allocated between the large temporary tensors of the
    tiles, they would fragment the heap until it grows like queries x keys.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, pos: Tensor, table: Tensor, queries: Tensor, step: int,
        scale: float, dropout_p: float,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(q, k, v, pos, table, queries)
        ctx.step, ctx.scale, ctx.dropout_p = step, scale, dropout_p
        device = q.device.type
        ctx.autocast = {"dtype": torch.get_autocast_dtype(device), "enabled": torch.is_autocast_enabled(device)}
        ctx.random = _random_state(q.device) if dropout_p > 0 else None
        out = None
        for start in range(0, q.shape[2], step):
            tile = slice(start, start + step)
            result = _tile(q[:, :, tile], k, v, pos, table, queries[tile], scale, dropout_p)
            if out is None:
                out = result.new_empty(*q.shape[:3], v.shape[-1])
            out[:, :, tile] = result
        assert out is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, queries = ctx.saved_tensors
        needed = ctx.needs_input_grad[:5]
        # Sums over tiles in at least float32. The gradient of a query comes from its tile alone and is not summed.
        sums = [
            torch.zeros_like(t, dtype=t.dtype if i == 0 else torch.promote_types(t.dtype, torch.float32))
            if needed[i]
            else None
            for i, t in enumerate(tensors)
        ]
        with _restored_random_state(gradient.device, ctx.random), torch.autocast(gradient.device.type, **ctx.autocast):
            for start in range(0, gradient.shape[2], ctx.step):
                tile = slice(start, start + ctx.step)
                inputs = [tensors[0][:, :, tile], *tensors[1:]]
                inputs = [t.detach().requires_grad_(need) for t, need in zip(inputs, needed, strict=True)]
                with torch.enable_grad():
                    q, k, v, pos, table = inputs
                    out = _tile(q, k, v, pos, table, queries[tile], ctx.scale, ctx.dropout_p)
                differentiated = [t for t, need in zip(inputs, needed, strict=True) if need]
                gradients = iter(torch.autograd.grad(out, differentiated, gradient[:, :, tile]))
                for i, total in enumerate(sums):
                    if total is not None and i == 0:
                        total[:, :, tile] = next(gradients)
                    elif total is not None:
                        total += next(gradients)
        result = [None if total is None else total.to(t.dtype) for total, t in zip(sums, tensors, strict=True)]
        return *result, None, None, None, None


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@contextmanager
def _restored_random_state(device: torch.device, state: Tensor | None) -> Iterator[None]:
    """Inside, the generators are in the given state; afterwards in the one they had before."""
    if state is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.cuda.set_rng_state(state, device) if device.type == "cuda" else torch.set_rng_state(state)
        yield


def _tile(
    q: Tensor, k: Tensor, v: Tensor, pos: Tensor, table: Tensor, queries: Tensor, scale: float, dropout_p: float
) -> Tensor:
    groups = pos.shape[1]
    tables = table.unflatten(0, (groups, -1)).repeat(len(pos), *(1,) * table.ndim)
    bias = grid.sample_displaced(tables, queries, pos.flatten(0, 1)).reshape(*q.shape[:3], k.shape[2])
    if bias.dtype == q.dtype:
        return sdpa(q, k, v, bias, dropout_p, scale)
    # Features in low precision: the bias stays in the positions' float32, as in the reference.
    weights = torch.softmax(scale * q @ k.transpose(-2, -1) + bias, dim=-1).to(v.dtype)
    return torch.dropout(weights, dropout_p, train=dropout_p > 0) @ v
