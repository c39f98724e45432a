"""Decisions on shapes that one compilation for changing sizes (``torch.compile(dynamic=True)``) need not make;
and who is asking."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
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


def is_transformed() -> bool:
    """Whether a transform of torch.func (vmap, grad, ...) is at work, for which operators of ours have no rules."""
    asked = getattr(torch._C, "_are_functorch_transforms_active", None)
    return not torch.compiler.is_compiling() and asked is not None and bool(asked())


_CONSTANTS: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()
KEPT = 64
"""Constants that are kept: those of a large model at a few sizes."""


def constant(make: Callable[..., Tensor], *key: Any) -> Tensor:
    """``make(*key)``, kept for the next time: a tensor that only sizes and the device decide.

    Made anew where something watches: compilation, export and tracing have to see it being made, and under fake tensors
    it would be one.
    """
    if torch.compiler.is_compiling() or is_tracing() or is_transformed():
        return make(*key)
    name = (make, *key)
    found = _CONSTANTS.get(name)
    if found is None:
        with torch.inference_mode(False), torch.no_grad():  # to be of use in training too
            found = make(*key)
        if type(found) is not Tensor:
            return found
        _CONSTANTS[name] = found
        if len(_CONSTANTS) > KEPT:
            _CONSTANTS.popitem(last=False)
    else:
        _CONSTANTS.move_to_end(name)
    return found
