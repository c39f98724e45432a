"""PyTorch's attention, in a layout that exported programs can rely on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deformvit.ops.tracing import is_exporting


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, dropout_p: float = 0.0, scale: float | None = None
) -> Tensor:
    """``F.scaled_dot_product_attention``, whose arguments and result these are.

    PyTorch stores the result head by head or token by token, depending on the kernel that it takes. An exported program
    is recorded with one kernel and may be lowered with another (``torch.onnx.export`` does so), where the recorded
    views of the result would not fit. So export records a copy in a fixed layout.
    """
    out = F.scaled_dot_product_attention(q, k, v, bias, dropout_p, scale=scale)
    return out.clone(memory_format=torch.contiguous_format) if is_exporting() else out
