"""Deformable attention as the paper writes it; tests compare every other implementation with this one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deformvit.ops import grid
from deformvit.ops.deformable.bias import position_bias, query_tokens


def deform_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos: Tensor,
    table: Tensor | None,
    *,
    query_hw: Sequence[int],
    convention: grid.Convention,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """z(m) = softmax(q(m) k~(m)^T / sqrt(d) + phi(B; R)) v~(m), equation 6; shapes as in the public function."""
    logits = scale * q @ k.transpose(-2, -1)
    if table is not None:
        logits = logits + position_bias(pos, table, query_tokens(query_hw, convention, pos))
    weights = torch.softmax(logits, dim=-1).to(v.dtype)
    return torch.dropout(weights, dropout_p, train=dropout_p > 0) @ v
