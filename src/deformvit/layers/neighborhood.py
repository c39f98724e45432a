"""Neighbourhood attention with a relative position bias: the local blocks of DAT++."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from deformvit.layers import common
from deformvit.ops import neighborhood_attn

torch.fx.wrap("neighborhood_attn")

SmallMap = Literal["whole", "zeros"]


@torch.fx.wrap
def pad_to(tokens: Tensor, size: int) -> Tensor:
    """Pad (B, H, W, C) with zeros at the bottom and right to at least ``size`` rows and columns."""
    height, width = tokens.shape[1:3]
    if height >= size and width >= size:
        return tokens
    return F.pad(tokens, (0, 0, 0, max(size - width, 0), 0, max(size - height, 0)))


@torch.fx.wrap
def _crop(tokens: Tensor, like: Tensor) -> Tensor:
    return tokens[:, : like.shape[1], : like.shape[2]]


class NeighborhoodAttention(nn.Module):
    """Multi-head attention of every pixel to the k x k pixels around it (NAT; DAT++).

    Args:
        dim: channels C.
        num_heads: heads M; divides ``dim``.
        kernel_size: side k of the neighbourhood, odd.
        small_map: on a map smaller than the neighbourhood, with ``"whole"`` every pixel attends to the whole map; with
            ``"zeros"`` the map is padded with zeros, which are keys too, as in the released DAT++.
        attn_drop: dropout on attention weights.
        proj_drop: dropout on the output.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int = 7,
        small_map: SmallMap = "whole",
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        common.check_heads(dim, num_heads)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
        common.check_choice("small_map", small_map, SmallMap)
        self.dim = dim
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.small_map = small_map
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.bias_table = nn.Parameter(torch.empty(num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1))
        trunc_normal_(self.bias_table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        common.check_map(x, self.dim)
        tokens = x.permute(0, 2, 3, 1)
        padded = pad_to(tokens, self.kernel_size) if self.small_map == "zeros" else tokens
        qkv = self.qkv(padded).unflatten(-1, (3, self.num_heads, -1)).permute(3, 0, 4, 1, 2, 5)
        q, k, v = qkv.unbind(0)
        dropout_p = self.attn_drop if self.training else 0.0
        out = neighborhood_attn(q, k, v, self.bias_table, self.kernel_size, dropout_p=dropout_p)
        out = _crop(out.permute(0, 2, 3, 1, 4).flatten(3), tokens)
        return self.proj_drop(self.proj(out)).permute(0, 3, 1, 2)
