"""Attention of every query to keys at deformed positions, with a position bias interpolated at the displacement.

One operation, several implementations that agree in outputs and in every gradient:

========== ============================================================ ==================
name       what                                                         memory
========== ============================================================ ==================
reference  the paper's equations, a matrix of every query and key       queries x keys
tiled      queries in tiles, plain PyTorch, recomputed in backward      queries + keys
========== ============================================================ ==================

``impl="auto"`` chooses by size and can be asked why (:func:`choose`); an implementation asked for by name never falls
back to another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from deformvit.ops import grid
from deformvit.ops.deform_attn import reference, tiled
from deformvit.ops.deform_attn.bias import log_displacement

__all__ = ["IMPLEMENTATIONS", "Choice", "Impl", "choose", "deform_attn", "log_displacement"]

Impl = Literal["auto", "reference", "tiled"]
IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "reference": reference.deform_attn,
    "tiled": tiled.deform_attn,
}


@dataclass(frozen=True)
class Choice:
    """What ``impl="auto"`` takes, and why."""

    impl: str
    reason: str


def choose(q: Tensor, k: Tensor) -> Choice:
    """What ``impl="auto"`` takes for queries (B, M, queries, d) and keys (B, M, N, d)."""
    weights = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
    size = f"{weights} attention weights ({q.shape[0]} x {q.shape[1]} x {q.shape[2]} x {k.shape[2]})"
    if weights <= tiled.BUDGET:
        return Choice("tiled", f"{size} are one tile of at most {tiled.BUDGET}: one call of PyTorch's attention")
    if torch.compiler.is_compiling():
        return Choice("reference", f"{size} are several tiles, whose loop torch.compile would unroll")
    return Choice("tiled", f"{size} are several tiles of at most {tiled.BUDGET}: in linear memory")


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
    impl: Impl = "auto",
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
        dropout_p: dropout on the attention weights. Implementations draw it differently.
        impl: implementation, see :mod:`deformvit.ops.deform_attn`.

    Returns:
        (B, M, H*W, d).

    Raises:
        ValueError: shapes that do not belong together, or an unknown implementation, named with what was expected.
    """
    if impl not in get_args(Impl):
        raise ValueError(f"unknown impl {impl!r}; expected one of {', '.join(get_args(Impl))}")
    _check(q, k, v, pos, table, query_hw)
    grid.check_convention(convention)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    name = choose(q, k).impl if impl == "auto" else impl
    return IMPLEMENTATIONS[name](
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
