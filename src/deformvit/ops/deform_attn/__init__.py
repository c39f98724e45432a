"""Attention of every query to keys at deformed positions, with a position bias interpolated at the displacement."""

from __future__ import annotations

from torch import Tensor

from deformvit.ops import grid
from deformvit.ops.deform_attn import reference

__all__ = ["deform_attn"]


def deform_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos: Tensor,
    table: Tensor | None,
    *,
    query_hw: tuple[int, int],
    convention: grid.Convention = "v1",
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Deformable multi-head attention (section 3.2, equation 6). Differentiable in q, k, v, pos and table.

    Args:
        q: (B, M, H*W, d) queries, row by row.
        k: (B, M, N, d) deformed keys.
        v: (B, M, N, d) deformed values.
        pos: (B, G, N, 2) deformed points, (y, x), normalised; heads m of group g are m // (M // G) = g.
        table: (M, T_h, T_w) relative position table of each head, or None for no bias. Any size: displacements are
            normalised, so a table learned at one map size is interpolated at another.
        query_hw: (H, W) of the map that the queries come from.
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


def _check(q: Tensor, k: Tensor, v: Tensor, pos: Tensor, table: Tensor | None, query_hw: tuple[int, int]) -> None:
    if q.ndim != 4 or k.ndim != 4:
        raise ValueError(f"q and k must be (B, M, tokens, d), got {tuple(q.shape)} and {tuple(k.shape)}")
    batch, heads, queries, dim = q.shape
    keys = k.shape[2]
    if queries != query_hw[0] * query_hw[1]:
        raise ValueError(f"q has {queries} queries but query_hw={tuple(query_hw)} has {query_hw[0] * query_hw[1]}")
    if k.shape != (batch, heads, keys, dim) or v.shape[:3] != k.shape[:3]:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} must agree in batch, heads and head "
            "dimension, k and v also in the number of keys"
        )
    if pos.ndim != 4 or pos.shape[0] != batch or pos.shape[2:] != (keys, 2):
        raise ValueError(f"pos must be (B, G, N, 2) = ({batch}, G, {keys}, 2), got {tuple(pos.shape)}")
    if pos.shape[1] == 0 or heads % pos.shape[1]:
        raise ValueError(f"{heads} heads cannot be shared evenly by the {pos.shape[1]} groups of pos")
    if table is not None and (table.ndim != 3 or table.shape[0] != heads):
        raise ValueError(f"table must be (M, T_h, T_w) with M = {heads} heads, got {tuple(table.shape)}")
