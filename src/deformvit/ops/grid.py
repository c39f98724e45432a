"""Where reference points, queries and deformed points lie: the only module that knows coordinates.

Positions are (y, x), normalised so that the map spans [-1, 1] on either axis whatever its size. They become (x, y)
once, inside :func:`sample`, because that is the order ``torch.nn.functional.grid_sample`` reads.

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
    height: int, width: int, shift: float, per_interval: bool, device: torch.device | None, dtype: torch.dtype
) -> Tensor:
    y = _axis(height, shift, height - per_interval, device, dtype)
    x = _axis(width, shift, width - per_interval, device, dtype)
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1)


def reference_points(
    height: int,
    width: int,
    convention: Convention = "v1",
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniform grid of reference points p (section 3.2).

    Returns:
        (height, width, 2), (y, x), normalised.
    """
    check_convention(convention)
    shift = 0.0 if convention == "aligned" else 0.5
    return _grid(height, width, shift, convention != "v1", device, dtype)


def query_points(
    height: int,
    width: int,
    convention: Convention = "v1",
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Positions of the queries of a height x width map, from which displacements are measured (equation 6).

    Returns:
        (height, width, 2), (y, x), normalised.
    """
    check_convention(convention)
    shift = 0.5 if convention == "v1" else 0.0
    return _grid(height, width, shift, convention != "v1", device, dtype)


def key_cell(
    height: int,
    width: int,
    convention: Convention = "v1",
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Unit of the offset range s: an offset of ``s * tanh(.)`` units moves a point by at most s/2 key-grid cells.

    The released code multiplies by 1/n (v1) or 1/(n - 1) (DAT++) although [-1, 1] is two long, hence the half.

    Returns:
        (2,), (y, x).
    """
    check_convention(convention)
    interval = convention != "v1"
    sides = [1.0 / max(height - interval, 1), 1.0 / max(width - interval, 1)]
    return torch.tensor(sides, device=device, dtype=dtype)


def sample(x: Tensor, pos: Tensor) -> Tensor:
    """Bilinear sampling of a map at positions, zero outside (equation 5, phi with g(a, b) = max(0, 1 - |a - b|)).

    Args:
        x: (B, C, H, W) features.
        pos: (B, H_out, W_out, 2) positions, (y, x), normalised.

    Returns:
        (B, C, H_out, W_out), in the dtype of ``x``.
    """
    if x.dtype != pos.dtype:  # under autocast features may be bfloat16, whose eight bits cannot hold a position
        return F.grid_sample(x.to(pos.dtype), pos.flip(-1), mode="bilinear", align_corners=True).to(x.dtype)
    return F.grid_sample(x, pos.flip(-1), mode="bilinear", align_corners=True)


def to_index(pos: Tensor, height: int, width: int) -> Tensor:
    """Positions as fractional (row, column) of a height x width map, (0, 0) being the centre of its first pixel."""
    size = torch.tensor([height, width], device=pos.device, dtype=pos.dtype)
    return (pos + 1) / 2 * (size - 1)
