"""Neighbourhood attention: every query attends to the k x k keys around it (NAT, arXiv 2204.07143; DAT++).

Near the border the window is shifted inwards, so that every query has as many keys: on an axis of length L, query i
sees key clamp(i - k // 2, 0, L - k) and the k - 1 after it. Computed in tiles: the windows of a tile's queries overlap,
so one dense, masked attention of the tile to the union of its windows replaces a gather of k x k keys for every query.
Runs on any device, with the relative position bias that NATTEN's kernels no longer have.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor

from deformvit.ops.sdpa import sdpa
from deformvit.ops.settings import ScopedSetting

TILE = 7
"""Queries of a tile along an axis; an axis up to twice as long is one tile."""

_TILE: ScopedSetting[int | None] = ScopedSetting("deformvit_neighborhood_tile", None)


def tile_size(tile: int) -> AbstractContextManager[None]:
    """Set ``tile`` of :func:`neighborhood_attn` for everything called inside a ``with`` block, in its own thread.

    With 1 every query is computed with its own k x k keys, as in the definition: what to count operations of.

    Raises:
        ValueError: a tile that is not positive.
    """
    _check_tile(tile)
    return _TILE.replaced(tile)


def _check_tile(tile: int) -> None:
    if tile < 1:
        raise ValueError(f"tile must be at least 1, got {tile}")


@torch.fx.wrap
def neighborhood_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor | None,
    kernel_size: int,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    tile: int | None = None,
) -> Tensor:
    """Attention of every query to its kernel_size x kernel_size neighbourhood. Differentiable in q, k, v and table.

    Args:
        q, k, v: (B, M, H, W, d). On an axis shorter than the kernel every query sees all keys.
        table: (M, 2 k - 1, 2 k - 1) position bias of each head, read at key - query + k - 1; or None.
        kernel_size: side k of the neighbourhood, odd.
        scale: factor of q k^T; 1 / sqrt(d) by default.
        dropout_p: dropout on the attention weights.
        tile: queries computed together along an axis; changes speed and memory, not the result. By default what the
            innermost block of :func:`tile_size` says; outside all blocks :data:`TILE`.

    Returns:
        (B, M, H, W, d).

    Raises:
        ValueError: shapes that do not fit together, an even kernel or a tile that is not positive.
    """
    if q.ndim != 5 or k.shape != q.shape or v.shape != q.shape:
        raise ValueError(
            f"q, k and v must have the same shape (B, M, H, W, d), got {tuple(q.shape)}, {tuple(k.shape)} and "
            f"{tuple(v.shape)}"
        )
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
    batch, heads, height, width, dim = q.shape
    side = 2 * kernel_size - 1
    if table is not None and table.shape != (heads, side, side):
        raise ValueError(f"table must be {(heads, side, side)}, got {tuple(table.shape)}")
    tile = _TILE.get() if tile is None else tile
    if tile is not None:
        _check_tile(tile)
    # Branches, not min(): under torch.compile they leave plain numbers instead of expressions of the image's size.
    tile_h, tile_w = (n if n <= (tile or 2 * TILE) else tile or TILE for n in (height, width))
    keys_y, rel_y, visible_y = _tiles(height, tile_h, kernel_size, q.device)
    keys_x, rel_x, visible_x = _tiles(width, tile_w, kernel_size, q.device)
    rows, cols = keys_y.shape[0], keys_x.shape[0]

    padded = F.pad(q, (0, 0, 0, cols * tile_w - width, 0, rows * tile_h - height))  # discarded below
    queries = padded.reshape(batch, heads, rows, tile_h, cols, tile_w, dim).permute(0, 2, 4, 1, 3, 5, 6)

    def gather(x: Tensor) -> Tensor:  # (B, M, H, W, d) -> (B, rows, cols, M, U_h, U_w, d)
        x = x.index_select(2, keys_y.flatten()).index_select(3, keys_x.flatten())
        return x.reshape(batch, heads, rows, -1, cols, keys_x.shape[1], dim).permute(0, 2, 4, 1, 3, 5, 6)

    # (rows, cols, T_h, T_w, U_h, U_w): which union keys a query sees, and where in the table their bias is.
    visible = visible_y[:, None, :, None, :, None] & visible_x[None, :, None, :, None, :]
    mask = visible.flatten(4).flatten(2, 3).flatten(0, 1)[:, None]  # (tiles, 1, T, U)
    if table is not None:
        index = rel_y[:, None, :, None, :, None] * side + rel_x[None, :, None, :, None, :]
        bias = table.flatten(1)[:, index.flatten()].reshape(heads, *mask[:, 0].shape).transpose(0, 1)
        mask = bias.to(q.dtype).masked_fill(~mask, float("-inf"))
    # Tiles and heads become one axis, as SDPA's fast paths need four axes.
    mask = mask.expand(-1, heads, -1, -1).flatten(0, 1)[None]
    out = sdpa(
        queries.flatten(4, 5).flatten(1, 3),
        gather(k).flatten(4, 5).flatten(1, 3),
        gather(v).flatten(4, 5).flatten(1, 3),
        mask, dropout_p, scale,
    )  # fmt: skip
    out = out.reshape(batch, rows, cols, heads, tile_h, tile_w, dim).permute(0, 3, 1, 4, 2, 5, 6)
    return out.reshape(batch, heads, rows * tile_h, cols * tile_w, dim)[:, :, :height, :width]


def _tiles(length: int, tile: int, kernel: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """One axis: (tiles, U) keys of each tile; (tiles, T, U) their index in the table, and whether a query sees them."""
    count = -(-length // tile)
    union = tile + kernel - 1 if length >= tile + kernel - 1 else length
    window = kernel if length >= kernel else length
    first = torch.arange(count, device=device) * tile
    keys = (first - kernel // 2).clamp(0, length - union)[:, None] + torch.arange(union, device=device)
    query = (first[:, None] + torch.arange(tile, device=device)).clamp(max=length - 1)
    start = (query - kernel // 2).clamp(0, length - window)[..., None]
    visible = (keys[:, None] >= start) & (keys[:, None] < start + window)
    relative = (keys[:, None] - query[..., None] + kernel - 1).clamp(0, 2 * kernel - 2)
    return keys, relative, visible
