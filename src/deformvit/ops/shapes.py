"""Decisions on shapes that one compilation for changing sizes (``torch.compile(dynamic=True)``) need not make;
and who is asking."""

from __future__ import annotations

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true


def known(condition: bool) -> bool:
    """Whether a condition on shapes holds for certain.

    Eagerly, and compiled for one size, simply the condition. Compiled for changing sizes, False unless it always holds:
    asking in an ``if`` would compile anew for every size that decides otherwise.
    """
    return bool(statically_known_true(condition))


def is_tracing() -> bool:
    """Whether ``torch.jit.trace`` is recording."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined]


def is_exporting() -> bool:
    """Whether ``torch.export`` is."""
    asked = getattr(torch.compiler, "is_exporting", None)  # since torch 2.7
    return asked is not None and bool(asked())
