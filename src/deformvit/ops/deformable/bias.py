"""The position bias of equation 6 at the displacements of given queries; what all plain implementations share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
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


class Cells(NamedTuple):
    """Where the position bias is read, for kernels that never write the displacements down: query (i, j) reads the
    table at row ``first[..., 0] + i * step[0]`` and column ``first[..., 1] + j * step[1]``, linearly, zero outside."""

    table: Tensor
    """(M, T_h, T_w)."""
    first: Tensor
    """(B, G, N, 2) fractional (row, column) that the map's first query reads, of every key."""
    step: tuple[float, float]
    """How far the row and the column move from one query to the next."""
    query_hw: tuple[int, int]
    """The queries' map; a sequence is a map of one row."""


def table_cells(pos: Tensor, table: Tensor, query_hw: Sequence[int], convention: grid.Convention) -> Cells:
    """The displacement of equation 6 in cells of the table. It is affine in the query's row and column, so that a
    number for every key and one for every axis say it all. Differentiable in ``pos`` and ``table``.

    Args:
        pos: (B, G, N, n) deformed points, n = 1 or 2.
        table: (M, T_h, T_w), or (M, T_w) for n = 1.
        query_hw: (H, W), or (L,).
    """
    axes = [grid.query_axis(n, convention) for n in query_hw]
    size = table.shape[1:]
    first = pos.new_tensor([start for start, _ in axes])
    first = grid.to_index((first - pos) / 2, size)  # as in displacement
    step = [interval / 4 * (n - 1) for (_, interval), n in zip(axes, size, strict=True)]  # halved there and in to_index
    if len(axes) == 1:
        return Cells(table[:, None], F.pad(first, (1, 0)), (0.0, step[0]), (1, query_hw[0]))
    return Cells(table, first, (step[0], step[1]), (query_hw[0], query_hw[1]))


@torch.fx.wrap
def log_displacement(pos: Tensor, query_hw: Sequence[int], convention: grid.Convention) -> Tensor:
    """The log-spaced displacement that DAT++'s continuous position bias reads (after Swin Transformer V2, section 3.3).

    ``sign(r) log2(|r| + 1) / log2(8)`` of r = 8 R, which runs to 8 where one point is on the map's
    far side of the other.

    Returns:
        (B * G, queries, N, n).
    """
    scaled = 8.0 * displacement(pos, query_tokens(query_hw, convention, pos))
    return scaled.sign() * torch.log2(scaled.abs() + 1.0) / math.log2(8.0)
