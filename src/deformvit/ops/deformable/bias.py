"""The position bias of equation 6: parts that the implementations share."""

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
    """R of equation 6, from every deformed key to every query; within [-1, 1] where both are on the map.

    Args:
        pos: (B, G, N, n) deformed points.
        queries: (Q, n) positions of queries.

    Returns:
        (B * G, Q, N, n).
    """
    # Positions span [-1, 1], their differences [-2, 2].
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
    """Where kernels, which never materialise displacements, read the position bias.

    Query (i, j) reads the table bilinearly at row ``first[..., 0] + i * step[0]`` and column
    ``first[..., 1] + j * step[1]``; outside the table the bias is zero.
    """

    table: Tensor
    """(M, T_h, T_w)."""
    first: Tensor
    """(B, G, N, 2) fractional (row, column) that the map's first query reads for every key."""
    step: tuple[float, float]
    """Difference in row and in column from one query to the next."""
    query_hw: tuple[int, int]
    """The queries' map; a sequence is a map of one row."""


def table_cells(pos: Tensor, table: Tensor, query_hw: Sequence[int], convention: grid.Convention) -> Cells:
    """The displacement of equation 6 in cells of the table. Differentiable in ``pos`` and ``table``.

    The displacement is affine in the query's row and column: one place for every key and one step for every axis
    describe it.

    Args:
        pos: (B, G, N, n) deformed points, n = 1 or 2.
        table: (M, T_h, T_w), or (M, T_w) for n = 1.
        query_hw: (H, W), or (L,).
    """
    axes = [grid.query_axis(n, convention) for n in query_hw]
    size = table.shape[1:]
    first = pos.new_tensor([start for start, _ in axes])
    first = grid.to_index((first - pos) / 2, size)
    # The interval is halved twice, for the displacement and in to_index.
    step = [interval / 4 * (n - 1) for (_, interval), n in zip(axes, size, strict=True)]
    if len(axes) == 1:
        return Cells(table[:, None], F.pad(first, (1, 0)), (0.0, step[0]), (1, query_hw[0]))
    return Cells(table, first, (step[0], step[1]), (query_hw[0], query_hw[1]))


@torch.fx.wrap
def log_displacement(pos: Tensor, query_hw: Sequence[int], convention: grid.Convention) -> Tensor:
    """The log-spaced displacement that DAT++'s continuous position bias reads (after Swin Transformer V2, section 3.3).

    ``sign(r) log2(|r| + 1) / log2(8)`` of r = 8 R; ``|r|`` is 8 between opposite borders of the map.

    Returns:
        (B * G, queries, N, n).
    """
    scaled = 8.0 * displacement(pos, query_tokens(query_hw, convention, pos))
    return scaled.sign() * torch.log2(scaled.abs() + 1.0) / math.log2(8.0)
