"""Whether PyTorch is recording or transforming the code that runs."""

from __future__ import annotations

import torch


def is_tracing() -> bool:
    """Whether ``torch.jit.trace`` is recording."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined]


def is_exporting() -> bool:
    """Whether ``torch.export`` is recording. Always False before PyTorch 2.7, which cannot tell."""
    is_exporting = getattr(torch.compiler, "is_exporting", None)
    return is_exporting is not None and bool(is_exporting())


def is_transformed() -> bool:
    """Whether a transform of torch.func (vmap, grad, ...) is active, for which our operators have no rules."""
    are_active = getattr(torch._C, "_are_functorch_transforms_active", None)
    return not torch.compiler.is_compiling() and are_active is not None and bool(are_active())
