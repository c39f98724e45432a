"""Deformable attention as the paper writes it: the oracle that every faster implementation is compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from deformvit.ops import grid


def displacement(pos: Tensor, query_hw: Sequence[int], convention: grid.Convention) -> Tensor:
    """R of equation 6: how far every query lies from every deformed key; [-1, 1] while both are on the map.

    Args:
        pos: (B, G, N, n) deformed points.

    Returns:
        (B * G, queries, N, n).
    """
    queries = grid.query_points(query_hw, convention, device=pos.device, dtype=pos.dtype)
    # Positions span [-1, 1], their differences twice that.
    return (queries.flatten(0, -2)[None, :, None] - pos.flatten(0, 1)[:, None]) / 2


def position_bias(pos: Tensor, table: Tensor, query_hw: Sequence[int], convention: grid.Convention) -> Tensor:
    """phi(B; R) of equation 6: the table read at the displacement of every query from every deformed key.

    Args:
        pos: (B, G, N, n) deformed points.
        table: (M, T_h, T_w) learned table of each head.

    Returns:
        (B, M, queries, N).
    """
    batch, groups = pos.shape[:2]
    tables = table.to(pos.dtype).unflatten(0, (groups, -1)).repeat(batch, *(1,) * table.ndim)
    bias = grid.sample(tables, displacement(pos, query_hw, convention))
    return bias.unflatten(0, (batch, groups)).flatten(1, 2)


@torch.fx.wrap
def log_displacement(pos: Tensor, query_hw: Sequence[int], convention: grid.Convention) -> Tensor:
    """The log-spaced displacement that DAT++'s continuous position bias reads (after Swin Transformer V2, section 3.3).

    sign(r) log2(|r| + 1) / log2(8) of r = 8 R, which runs to 8 where one point is on the map's far side of the other.

    Returns:
        (B * G, queries, N, n).
    """
    scaled = 8.0 * displacement(pos, query_hw, convention)
    return scaled.sign() * torch.log2(scaled.abs() + 1.0) / math.log2(8.0)


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
) -> Tensor:
    """z(m) = softmax(q(m) k~(m)^T / sqrt(d) + phi(B; R)) v~(m), equation 6; shapes as in the public function."""
    logits = scale * q @ k.transpose(-2, -1)
    if table is not None:
        logits = logits + position_bias(pos, table, query_hw, convention)
    weights = torch.softmax(logits, dim=-1).to(v.dtype)
    return torch.dropout(weights, dropout_p, train=dropout_p > 0) @ v
