"""Which implementation of deformable attention runs: chosen by name for a block of code, or automatically."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from deformvit.ops.deformable import cpu, tiled, triton
from deformvit.ops.settings import ScopedSetting
from deformvit.ops.tracing import is_exporting, is_tracing, is_transformed

Impl = Literal["auto", "reference", "tiled", "cpu", "triton"]
"""Names that ``impl`` and :func:`attention_impl` take."""

KERNELS: dict[str, tuple[str, Callable[..., str | None]]] = {
    "cpu": ("cpu", cpu.can_run),
    "cuda": ("triton", triton.can_run),
}
"""The kernels for a type of device: the implementation's name, and the function that says why they cannot run."""

_IMPL: ScopedSetting[Impl] = ScopedSetting("deformvit_attention_impl", "auto")


def attention_impl(impl: Impl) -> AbstractContextManager[None]:
    """Choose the implementation of deformable attention for everything called inside a ``with`` block::

        with deformvit.ops.attention_impl("reference"):
            model(x)

    Blocks can be nested: the innermost counts, and leaving it restores the one around it. A block holds in its own
    thread or asyncio task. An ``impl`` passed to :func:`deform_attn` takes precedence over the block. Layers whose
    position bias is "fixed" or "log_cpb" have a single implementation, which no block changes.

    With ``torch.compile``, open the block around the call of the compiled function, which is compiled once for every
    implementation. Before PyTorch 2.14 a call inside a block leaves the graph at every deformable attention, and
    raises under ``fullgraph=True``. Activation checkpointing computes forward again in backward, on CUDA in another
    thread, which does not see the block: pass it to ``torch.utils.checkpoint.checkpoint`` as ``context_fn``.

    Args:
        impl: a name from :mod:`deformvit.ops.deformable`. One that cannot run raises ``ValueError`` where attention is
            computed, with the reason.

    Raises:
        ValueError: an unknown name.
    """
    check_impl(impl)
    return _IMPL.replaced(impl)


def check_impl(impl: str) -> None:
    """Raise ``ValueError`` unless ``impl`` is one of :data:`Impl`."""
    if impl not in get_args(Impl):
        raise ValueError(f"unknown impl {impl!r}; expected one of {', '.join(get_args(Impl))}")


def requested_impl() -> Impl:
    """What the innermost block of :func:`attention_impl` asks for; "auto" outside all blocks."""
    return _IMPL.get()


@dataclass(frozen=True)
class Choice:
    """The implementation that ``"auto"`` takes, and why."""

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
    """What ``"auto"`` takes for these arguments of :func:`deformvit.ops.deform_attn`, and why."""
    impl, reason = automatic_impl(q, k, v, pos, table, query_hw, dropout_p)
    weights = f"{_weights(q, k)} attention weights ({q.shape[0]} x {q.shape[1]} x {q.shape[2]} x {k.shape[2]})"
    return Choice(impl, f"{reason}; {weights}")


def _weights(q: Tensor, k: Tensor) -> int:
    return q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]


def automatic_impl(
    q: Tensor, k: Tensor, v: Tensor, pos: Tensor, table: Tensor | None, query_hw: Sequence[int], dropout_p: float
) -> tuple[str, str]:
    """Name and reason of what ``"auto"`` takes. The reason names no sizes, which torch.compile would specialise."""
    if q.device.type == "meta":
        return "reference", "on the meta device nothing is computed, and these are the operations to count"
    name, can_run = KERNELS.get(q.device.type, (None, None))
    if name is None or can_run is None:
        why = f"there are no kernels for the device {q.device.type}"
    elif is_tracing() or is_exporting():
        why = "exported programs should need only PyTorch's own operators"
    elif is_transformed():
        why = "torch.func transforms know only PyTorch's own operators"
    else:
        reason = can_run(q, k, v, pos, table, query_hw, dropout_p)
        if reason is None:
            return name, f"the kernels for {q.device.type} can run"
        why = f"{name} cannot run: {reason}"
    if _weights(q, k) <= tiled.MAX_TILE_WEIGHTS:
        return "tiled", f"{why}; one tile, which is one call of PyTorch's attention"
    if torch.compiler.is_compiling():
        return "reference", f"{why}; there are several tiles, whose loop torch.compile would unroll"
    return "tiled", f"{why}; several tiles, in linear memory"
