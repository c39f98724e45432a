"""Attention of every query to keys at deformed positions, with a position bias interpolated at the displacement.

One operation, several implementations that agree in outputs and in every gradient:

========== ============================================================ ==================
name       what                                                         memory
========== ============================================================ ==================
reference  the paper's equations, a matrix of every query and key       queries x keys
tiled      queries in tiles, plain PyTorch, recomputed in backward      queries + keys
cpu        compiled kernels for the CPU, the bias computed on the fly   queries + keys
triton     the same as Triton kernels for CUDA                          queries + keys
========== ============================================================ ==================

``impl="auto"`` chooses by device, dtype and size and can be asked why (:func:`choose`); an implementation asked for by
name never falls back to another: it says why it can't run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from deformvit.ops import grid
from deformvit.ops.deform_attn import cpu, reference, tiled, triton
from deformvit.ops.deform_attn.bias import log_displacement
from deformvit.ops.deform_attn.checks import check_devices, check_finite, check_shapes
from deformvit.ops.shapes import is_exporting, is_tracing, is_transformed

__all__ = ["IMPLEMENTATIONS", "Choice", "Impl", "choose", "deform_attn", "log_displacement"]

Impl = Literal["auto", "reference", "tiled", "cpu", "triton"]
IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "reference": reference.deform_attn,
    "tiled": tiled.deform_attn,
    "cpu": cpu.deform_attn,
    "triton": triton.deform_attn,
}
KERNELS: dict[str, tuple[str, Callable[..., str | None]]] = {
    "cpu": ("cpu", cpu.can_run),
    "cuda": ("triton", triton.can_run),
}
"""Kernels made for a type of device, and what says why they can't run."""


@dataclass(frozen=True)
class Choice:
    """What ``impl="auto"`` takes, and why."""

    impl: str
    reason: str


def choose(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos: Tensor,
    table: Tensor | None,
    *,
    query_hw: Sequence[int],
    dropout_p: float = 0.0,
) -> Choice:
    """What ``impl="auto"`` takes for these arguments of :func:`deform_attn`, and why."""
    impl, reason = _choose(q, k, v, pos, table, query_hw, dropout_p)
    weights = f"{_weights(q, k)} attention weights ({q.shape[0]} x {q.shape[1]} x {q.shape[2]} x {k.shape[2]})"
    return Choice(impl, f"{reason}; {weights}")


def _weights(q: Tensor, k: Tensor) -> int:
    return q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]


def _choose(
    q: Tensor, k: Tensor, v: Tensor, pos: Tensor, table: Tensor | None, query_hw: Sequence[int], dropout_p: float
) -> tuple[str, str]:
    # No sizes in the texts: to be written, they would have to be fixed under torch.compile.
    if q.device.type == "meta":
        return "reference", "on the meta device nothing is computed, and these are the operations to count"
    name, can_run = KERNELS.get(q.device.type, (None, None))
    if name is None or can_run is None:
        why = f"there are no kernels for the device {q.device.type}"
    elif is_tracing() or is_exporting():
        why = "exported programs should need PyTorch's operators alone"
    elif is_transformed():
        why = "torch.func's transforms know PyTorch's operators alone"
    else:
        reason = can_run(q, k, v, pos, table, query_hw, dropout_p)
        if reason is None:
            return name, f"the kernels for {q.device.type} can run"
        why = f"{name} can't run: {reason}"
    if _weights(q, k) <= tiled.BUDGET:
        return "tiled", f"{why}; one tile, which is one call of PyTorch's attention"
    if torch.compiler.is_compiling():
        return "reference", f"{why}; there are several tiles, whose loop torch.compile would unroll"
    return "tiled", f"{why}; several tiles, in linear memory"


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
        dropout_p: dropout on the attention weights. Implementations draw it differently, the kernels have none.
        impl: implementation, see :mod:`deformvit.ops.deform_attn`.

    Returns:
        (B, M, H*W, d).

    Raises:
        ValueError: shapes that do not belong together, tensors on several devices, positions that are not finite (on
            the CPU), an unknown implementation or one that can't run here; named with what was expected.
    """
    if impl not in get_args(Impl):
        raise ValueError(f"unknown impl {impl!r}; expected one of {', '.join(get_args(Impl))}")
    check_shapes(q, k, v, pos, table, query_hw)
    check_devices(q, k, v, pos, table)
    grid.check_convention(convention)
    check_finite(pos)
    device = q.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):  # as PyTorch's attention does
        dtype = torch.get_autocast_dtype(device)
        q, k, v = (x if x.dtype == torch.float64 else x.to(dtype) for x in (q, k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    name = _choose(q, k, v, pos, table, query_hw, dropout_p)[0] if impl == "auto" else impl
    return IMPLEMENTATIONS[name](
        q, k, v, pos, table, query_hw=query_hw, convention=convention, scale=scale, dropout_p=dropout_p
    )
