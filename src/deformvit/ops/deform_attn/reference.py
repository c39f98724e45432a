"""Deformable attention as the paper writes it: the oracle that every faster implementation is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from deformvit.ops import grid


def position_bias(pos: Tensor, table: Tensor, query_hw: tuple[int, int], convention: grid.Convention) -> Tensor:
    """phi(B; R) of equation 6: the table read at the displacement of every query from every deformed key.

    Args:
        pos: (B, G, N, 2) deformed points.
        table: (M, T_h, T_w) learned table of each head.

    Returns:
        (B, M, H*W, N).
    """
    batch, groups, keys, _ = pos.shape
    heads = table.shape[0]
    queries = grid.query_points(*query_hw, convention, device=pos.device, dtype=pos.dtype)
    # Displacements lie in [-2, 2] while both points are on the map; the table spans [-1, 1].
    displacement = (queries.reshape(1, -1, 1, 2) - pos.reshape(batch * groups, 1, keys, 2)) / 2
    tables = table.to(pos.dtype).unflatten(0, (groups, -1)).repeat(batch, 1, 1, 1)
    return grid.sample(tables, displacement).reshape(batch, heads, -1, keys)


def deform_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos: Tensor,
    table: Tensor | None,
    *,
    query_hw: tuple[int, int],
    convention: grid.Convention,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """z(m) = softmax(q(m) k~(m)^T / sqrt(d) + phi(B; R)) v~(m), equation 6; shapes as in the public function."""
    logits = scale * q @ k.transpose(-2, -1)
    if table is not None:
        logits = logits + position_bias(pos, table, query_hw, convention)
    weights = torch.softmax(logits, dim=-1).to(v.dtype)
    return torch.dropout(weights, dropout_p, train=dropout_p > 0) @ v
