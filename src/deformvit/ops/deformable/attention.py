"""Deformable attention as users and layers call it: checks, choice of the implementation, dispatch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from deformvit.ops import grid
from deformvit.ops.deformable import cpu, reference, tiled, triton
from deformvit.ops.deformable.checks import check_devices, check_finite, check_shapes
from deformvit.ops.deformable.selection import Impl, automatic_impl, check_impl, requested_impl

IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "reference": reference.deform_attn,
    "tiled": tiled.deform_attn,
    "cpu": cpu.deform_attn,
    "triton": triton.deform_attn,
}
"""The implementations by name, for comparisons; :func:`deform_attn` calls the one that is chosen."""


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
    impl: Impl | None = None,
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
        dropout_p: dropout on the attention weights. Implementations draw it differently; the kernels have none.
        impl: implementation, see :mod:`deformvit.ops.deformable`. By default what the innermost block of
            :func:`attention_impl` says, "auto" outside all blocks; a name or "auto" passed here takes precedence.

    Returns:
        (B, M, H*W, d).

    Raises:
        ValueError: shapes that do not fit together, tensors on several devices, positions that are not finite (on
            the CPU), an unknown implementation, or one that cannot run here. The message says what was expected.
    """
    if impl is None:
        impl = requested_impl()
    check_impl(impl)
    check_shapes(q, k, v, pos, table, query_hw)
    check_devices(q, k, v, pos, table)
    grid.check_convention(convention)
    check_finite(pos)
    device = q.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):  # as PyTorch's attention does
        dtype = torch.get_autocast_dtype(device)
        q, k, v = (x if x.dtype == torch.float64 else x.to(dtype) for x in (q, k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    name = automatic_impl(q, k, v, pos, table, query_hw, dropout_p)[0] if impl == "auto" else impl
    return IMPLEMENTATIONS[name](
        q, k, v, pos, table, query_hw=query_hw, convention=convention, scale=scale, dropout_p=dropout_p
    )
