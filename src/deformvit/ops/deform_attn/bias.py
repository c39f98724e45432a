"""The position bias of equation 6 at the displacements of given queries; what all plain implementations share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from deformvit.ops import grid


def query_tokens(query_hw: Sequence[int], convention: grid.Convention, like: Tensor) -> Tensor:
    """(queries, n) positions of a map's queries, row by row, with the device and dtype of ``like``."""
    return grid.query_points(query_hw, convention, device=like.device, dtype=like.dtype).flatten(0, -2)


def displacement(pos: Tensor, queries: Tensor) -> Tensor:
    """R of equation 6: how far every query lies from every deformed key; [-1, 1] while both are on the map.

    Args:
        pos: (B, G, N, n) deformed points.
        queries: (Q, n) positions of queries.

    Returns:
        (B * G, Q, N, n).
    """
    # Positions span [-1, 1], their differences twice that.
    return (queries[None, :, None] - pos.flatten(0, 1)[:, None]) / 2


def position_bias(pos: Tensor, table: Tensor, queries: Tensor) -> Tensor:
    """phi(B; R) of equation 6: the table read at the displacement of every query from every deformed key.

    Args:
        pos: (B, G, N, n) deformed points.
        table: (M, T_h, T_w) learned table of each head.
        queries: (Q, n) positions of queries.

    Returns:
        (B, M, Q, N).
    """
    batch, groups = pos.shape[:2]
    tables = table.to(pos.dtype).unflatten(0, (groups, -1)).repeat(batch, *(1,) * table.ndim)
    return grid.sample(tables, displacement(pos, queries)).unflatten(0, (batch, groups)).flatten(1, 2)


@torch.fx.wrap
def log_displacement(pos: Tensor, query_hw: Sequence[int], convention: grid.Convention) -> Tensor:
    """The log-spaced displacement that DAT++'s continuous position bias reads (after Swin Transformer V2, section 3.3).

    sign(r) log2(|r| + 1) / log2(8) of r = 8 R, which runs to 8 where one point is on the map's far side of the other.

    Returns:
        (B * G, queries, N, n).
    """
    scaled = 8.0 * displacement(pos, query_tokens(query_hw, convention, pos))
    return scaled.sign() * torch.log2(scaled.abs() + 1.0) / math.log2(8.0)
