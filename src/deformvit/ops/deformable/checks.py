"""Checks of the arguments of deformable attention, the same for every implementation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deformvit.ops.tracing import is_tracing, is_transformed


def check_shapes(q: Tensor, k: Tensor, v: Tensor, pos: Tensor, table: Tensor | None, query_hw: Sequence[int]) -> None:
    """Raise ``ValueError`` for tensors whose shapes do not fit together, and for empty ones."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise ValueError(f"{name} must be (B, M, tokens, d), got {tuple(x.shape)}")
    batch, heads, queries, dim = q.shape
    keys, axes = k.shape[2], len(query_hw)
    if queries != math.prod(query_hw):
        raise ValueError(f"q has {queries} queries but query_hw={tuple(query_hw)} has {math.prod(query_hw)}")
    if k.shape != (batch, heads, keys, dim) or v.shape[:3] != k.shape[:3]:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} must agree in batch, heads and head "
            "dimension, k and v also in the number of keys"
        )
    if heads == 0 or queries == 0 or keys == 0 or dim == 0 or v.shape[3] == 0:
        raise ValueError(
            f"heads, queries, keys and channels must be at least 1; got q {tuple(q.shape)}, k {tuple(k.shape)} and "
            f"v {tuple(v.shape)}"
        )
    if pos.ndim != 4 or pos.shape[0] != batch or pos.shape[2:] != (keys, axes):
        raise ValueError(f"pos must be (B, G, N, {axes}) = ({batch}, G, {keys}, {axes}), got {tuple(pos.shape)}")
    if pos.shape[1] == 0 or heads % pos.shape[1]:
        raise ValueError(f"{heads} heads cannot be shared evenly by the {pos.shape[1]} groups of pos")
    if table is not None and (table.ndim != axes + 1 or table.shape[0] != heads or 0 in table.shape):
        sides = ", ".join(["T_d", "T_h", "T_w"][-axes:])
        raise ValueError(f"table must be (M, {sides}) with M = {heads} heads, got {tuple(table.shape)}")


def check_devices(q: Tensor, k: Tensor, v: Tensor, pos: Tensor, table: Tensor | None) -> None:
    """Raise ``ValueError`` unless all tensors are on one device."""
    devices = {"q": q.device, "k": k.device, "v": v.device, "pos": pos.device}
    if table is not None:
        devices["table"] = table.device
    if any(device != q.device for device in devices.values()):
        where = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"all tensors must be on one device, got {where}")


def check_finite(pos: Tensor) -> None:
    """Raise ``ValueError`` for positions that are not finite.

    On the CPU only: on other devices every layer would wait for the device. There, kernels never read outside the
    table, and the output is NaN where a position is.
    """
    plain = type(pos) is Tensor or type(pos) is nn.Parameter  # no fake, functional or traced tensor
    if pos.device.type != "cpu" or not plain or torch.compiler.is_compiling() or is_tracing() or is_transformed():
        return
    finite = torch.isfinite(pos)
    if not finite.all():
        b, g, n = (~finite).any(-1).nonzero()[0].tolist()
        raise ValueError(
            f"positions must be finite; {int((~finite).any(-1).sum())} are not, the first of them "
            f"pos[{b}, {g}, {n}] = {pos[b, g, n].tolist()}"
        )
