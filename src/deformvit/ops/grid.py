"""Coordinates of reference points, queries and deformed points. No other module converts between conventions.

Positions are (y, x), normalised so that the map spans [-1, 1] on either axis whatever its size; (x,) on sequences and
(z, y, x) in volumes, always in the order of the tensor's axes. They are reversed only inside :func:`sample`, because
``torch.nn.functional.grid_sample`` reads (x, y).

Three conventions place point ``i`` of ``n``. Sampling is always ``align_corners=True`` (-1 and 1 are the centres of the
first and last pixel), as in the released code, whose checkpoints depend on it:

=========== ============================ ============================ ==================================================
name        reference point              query                        used by
=========== ============================ ============================ ==================================================
``v1``      ``(i + 0.5) / n * 2 - 1``    ``(i + 0.5) / n * 2 - 1``    DAT (CVPR 2022); a zero offset is not the identity
``datpp``   ``(i + 0.5)/(n - 1)*2 - 1``  ``i / (n - 1) * 2 - 1``      DAT++; half a cell right of and below the pixel
``aligned`` ``i / (n - 1) * 2 - 1``      ``i / (n - 1) * 2 - 1``      ours, pixel centres: a zero offset is the identity
=========== ============================ ============================ ==================================================

A single point (``n = 1``), for which the last two divide by zero in the released code, lies at the centre, 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Convention = Literal["v1", "datpp", "aligned"]
CONVENTIONS: tuple[str, ...] = get_args(Convention)


def check_convention(convention: str) -> None:
    """Raise ``ValueError`` unless ``convention`` is one of :data:`CONVENTIONS`."""
    if convention not in CONVENTIONS:
        raise ValueError(f"unknown coordinate convention {convention!r}; expected one of {', '.join(CONVENTIONS)}")


def _axis(n: int, shift: float, span: int, device: torch.device | None, dtype: torch.dtype) -> Tensor:
    if span == 0:  # one point on an axis whose unit is the distance between the first and the last point
        return torch.zeros(n, device=device, dtype=dtype)
    return (torch.arange(n, device=device, dtype=dtype) + shift) * (2.0 / span) - 1.0


def _grid(
    size: Sequence[int], shift: float, per_interval: bool, device: torch.device | None, dtype: torch.dtype
) -> Tensor:
    axes = [_axis(n, shift, n - per_interval, device, dtype) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def reference_points(
    size: Sequence[int],
    convention: Convention = "v1",
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniform grid of reference points p (section 3.2).

    Args:
        size: (H, W) of the key grid; (L,) or (D, H, W) in one or three dimensions.

    Returns:
        ``(*size, n)``, (y, x) for n = 2, normalised.
    """
    check_convention(convention)
    shift = 0.0 if convention == "aligned" else 0.5
    return _grid(size, shift, convention != "v1", device, dtype)


def query_points(
    size: Sequence[int],
    convention: Convention = "v1",
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Positions of the queries of a map, from which displacements are measured (equation 6).

    Args:
        size: (H, W) of the queries' map; (L,) or (D, H, W) in one or three dimensions.

    Returns:
        ``(*size, n)``, (y, x) for n = 2, normalised.
    """
    check_convention(convention)
    shift = 0.5 if convention == "v1" else 0.0
    return _grid(size, shift, convention != "v1", device, dtype)


def key_cell(
    size: Sequence[int],
    convention: Convention = "v1",
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Unit of the offset range s: an offset of ``s * tanh(.)`` units moves a point by at most s/2 key-grid cells.

    The released code multiplies by 1/n (v1) or 1/(n - 1) (DAT++) although [-1, 1] is two long, hence the half.

    Returns:
        (n,), (y, x) for n = 2.
    """
    check_convention(convention)
    interval = convention != "v1"
    return torch.tensor([1.0 / (n - interval if n > 1 else 1) for n in size], device=device, dtype=dtype)


def query_axis(n: int, convention: Convention = "v1") -> tuple[float, float]:
    """Position of the first query of an axis, and distance between neighbours: :func:`query_points` as two numbers."""
    check_convention(convention)
    span = n if convention == "v1" else n - 1
    if span == 0:
        return 0.0, 0.0
    return (0.5 if convention == "v1" else 0.0) * (2.0 / span) - 1.0, 2.0 / span


@torch.fx.wrap
def sample(x: Tensor, pos: Tensor) -> Tensor:
    """Linear sampling of a map at positions, zero outside (equation 5, phi with ``g(a, b) = max(0, 1 - |a - b|)``).

    Args:
        x: (B, C, H, W) features; (B, C, L) or (B, C, D, H, W) in one or three dimensions.
        pos: ``(B, *size_out, n)`` positions, (y, x) for n = 2, normalised. ``size_out`` has any number of axes.

    Returns:
        ``(B, C, *size_out)``, in the dtype of ``x``.
    """
    if x.dtype != pos.dtype:  # under autocast features may be bfloat16, whose eight bits cannot hold a position
        return sample(x.to(pos.dtype), pos).to(x.dtype)
    return _sample(x, pos.flip(-1))


def sample_displaced(x: Tensor, queries: Tensor, pos: Tensor) -> Tensor:
    """:func:`sample` at half the difference of every query and every position.

    The difference, the largest tensor here, is materialised once; passed to :func:`sample` it would be three times.

    Args:
        x: ``(B, C, *size)`` maps.
        queries: (Q, n) positions.
        pos: (B, N, n) positions.

    Returns:
        (B, C, Q, N), in the dtype of ``pos``.
    """
    reverse = (queries / 2).flip(-1)[None, :, None] - (pos / 2).flip(-1)[:, None]
    return _sample(x.to(pos.dtype), reverse)


def _sample(x: Tensor, reverse: Tensor) -> Tensor:
    """:func:`sample` at positions whose axes are reversed, (x, y) for n = 2."""
    axes, out_size = reverse.shape[-1], reverse.shape[1:-1]
    if axes == 1:  # grid_sample takes images and volumes; a sequence is an image of one row
        x = x.unsqueeze(2)
        reverse = F.pad(reverse, (0, 1))
    images = max(axes, 2)
    if len(out_size) == images:
        return F.grid_sample(x, reverse, mode="bilinear", align_corners=True)
    points = reverse.reshape(x.shape[0], *(1,) * (images - 1), -1, images)
    sampled = F.grid_sample(x, points, mode="bilinear", align_corners=True)
    return sampled.reshape(*x.shape[:2], *out_size)


def to_index(pos: Tensor, size: Sequence[int]) -> Tensor:
    """Positions as fractional (row, column) of a map of that size; (0, 0) is the centre of its first pixel."""
    return (pos + 1) / 2 * (torch.tensor(size, device=pos.device, dtype=pos.dtype) - 1)


def from_index(index: Tensor, size: Sequence[int]) -> Tensor:
    """The inverse of :func:`to_index`: fractional (row, column) of a map as normalised positions.

    On an axis of one pixel every index becomes the centre, 0.
    """
    span = [n - 1 if n > 1 else 1 for n in size]
    single = torch.tensor([n == 1 for n in size], device=index.device)
    pos = index * (2.0 / torch.tensor(span, device=index.device, dtype=index.dtype)) - 1
    return pos.masked_fill(single, 0.0)


def splat(mass: Tensor, index: Tensor, size: tuple[int, int]) -> Tensor:
    """The adjoint of :func:`sample`: the mass of every point is spread over the four pixels that sampling reads there.

    Args:
        mass: (N,) mass of every point.
        index: (N, 2) fractional (row, column), as :func:`to_index` gives. Mass outside the map is dropped.
        size: (H, W) of the map.

    Returns:
        (H, W).
    """
    height, width = size
    corner = index.floor()
    spread = mass.new_zeros(height * width)
    for down in (0, 1):
        for right in (0, 1):
            row, col = corner[:, 0] + down, corner[:, 1] + right
            share = (1 - (index[:, 0] - row).abs()) * (1 - (index[:, 1] - col).abs())
            inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
            flat = (row * width + col)[inside].long()
            spread.index_add_(0, flat, (mass * share.to(mass.dtype))[inside])
    return spread.reshape(height, width)
