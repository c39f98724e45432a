"""Attention of every query to keys at deformed positions, with a position bias interpolated at the displacement."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from deformvit.ops import grid
from deformvit.ops.deform_attn import reference

__all__ = ["deform_attn"]


@torch.fx.wrap
def deform_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos: Tensor,
    table: Tensor | None,
    *,
    query_hw: Sequence[int],
    convention: grid.Convention = "v1",
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Deformable multi-head attention (section 3.2, equation 6). Differentiable in q, k, v, pos and table.

    Args:
        q: (B, M, H*W, d) queries, row by row.
        k: (B, M, N, d) deformed keys.
        v: (B, M, N, d) deformed values.
        pos: (B, G, N, 2) deformed points, (y, x), normalised; heads m of group g are m // (M // G) = g. The last axis
            is 1 on sequences and 3 in volumes.
        table: (M, T_h, T_w) relative position table of each head, or None for no bias. Any size: displacements are
            normalised, so a table learned at one map size is interpolated at another.
        query_hw: (H, W) of the map that the queries come from; (L,) on sequences, (D, H, W) in volumes.
        convention: where queries lie, see :mod:`deformvit.ops.grid`.
        scale: factor of q k^T; 1 / sqrt(d) by default.
        dropout_p: dropout on the attention weights.

    Returns:
        (B, M, H*W, d).

    Raises:
        ValueError: shapes that do not belong together, named with what was expected.
    """
    _check(q, k, v, pos, table, query_hw)
    grid.check_convention(convention)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return reference.deform_attn(
        q, k, v, pos, table, query_hw=query_hw, convention=convention, scale=scale, dropout_p=dropout_p
    )


def _check(q: Tensor, k: Tensor, v: Tensor, pos: Tensor, table: Tensor | None, query_hw: Sequence[int]) -> None:
    if q.ndim != 4 or k.ndim != 4:
        raise ValueError(f"q and k must be (B, M, tokens, d), got {tuple(q.shape)} and {tuple(k.shape)}")
    batch, heads, queries, dim = q.shape
    keys, axes = k.shape[2], len(query_hw)
    if queries != math.prod(query_hw):
        raise ValueError(f"q has {queries} queries but query_hw={tuple(query_hw)} has {math.prod(query_hw)}")
    if k.shape != (batch, heads, keys, dim) or v.shape[:3] != k.shape[:3]:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} must agree in batch, heads and head "
            "dimension, k and v also in the number of keys"
        )
    if pos.ndim != 4 or pos.shape[0] != batch or pos.shape[2:] != (keys, axes):
        raise ValueError(f"pos must be (B, G, N, {axes}) = ({batch}, G, {keys}, {axes}), got {tuple(pos.shape)}")
    if pos.shape[1] == 0 or heads % pos.shape[1]:
        raise ValueError(f"{heads} heads cannot be shared evenly by the {pos.shape[1]} groups of pos")
    if table is not None and (table.ndim != axes + 1 or table.shape[0] != heads):
        sides = ", ".join(["T_d", "T_h", "T_w"][-axes:])
        raise ValueError(f"table must be (M, {sides}) with M = {heads} heads, got {tuple(table.shape)}")
