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

``"auto"``, the default, chooses by device, dtype and size; :func:`choose` says what and why. :func:`attention_impl`
chooses for a whole model, the argument ``impl`` for one call. An implementation chosen by name never falls back to
another: it raises, and says why it cannot run.
"""

from deformvit.ops.deformable.attention import IMPLEMENTATIONS, deform_attn
from deformvit.ops.deformable.bias import log_displacement
from deformvit.ops.deformable.selection import KERNELS, Choice, Impl, attention_impl, choose

__all__ = [
    "IMPLEMENTATIONS",
    "KERNELS",
    "Choice",
    "Impl",
    "attention_impl",
    "choose",
    "deform_attn",
    "log_displacement",
]
