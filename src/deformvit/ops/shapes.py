"""Decisions on shapes that one compilation for changing sizes (``torch.compile(dynamic=True)``) need not make."""

from __future__ import annotations

from torch.fx.experimental.symbolic_shapes import statically_known_true


def known(condition: bool) -> bool:
    """Whether a condition on shapes holds for certain.

    Eagerly, and compiled for one size, simply the condition. Compiled for changing sizes, False unless it always holds:
    asking in an ``if`` would compile anew for every size that decides otherwise.
    """
    return bool(statically_known_true(condition))
