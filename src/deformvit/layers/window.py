"""Local attention in windows, plain or shifted (Swin), on maps of any size."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from deformvit.layers import common
from deformvit.ops import window
from deformvit.ops.sdpa import sdpa


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a relative position bias (section 3.3; Swin Transformer).

    Maps whose size is not a multiple of the window are padded at the bottom and right, and the padding is masked. On a
    map that fits into one unshifted window, every query attends to all of the map, without padding.

    Args:
        dim: channels C.
        num_heads: heads M; divides ``dim``.
        window_size: side of the square window.
        shift_size: rows and columns by which windows are shifted, 0 to ``window_size - 1``; 0 for none.
        swin: along an axis that one window covers, do not shift, as Swin does; the released DAT shifts.
        attn_drop: dropout on attention weights.
        proj_drop: dropout on the output.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 7,
        shift_size: int = 0,
        swin: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        common.check_heads(dim, num_heads)
        if window_size < 1 or not 0 <= shift_size < window_size:
            raise ValueError(f"shift_size must be in [0, window_size), got {shift_size} for window {window_size}")
        self.dim = dim
        self.num_heads = num_heads
        self.window_size = window_size
        self.shift_size = shift_size
        self.swin = swin
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        trunc_normal_(self.bias_table, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        common.check_map(x, self.dim)
        tokens = x.permute(0, 2, 3, 1)
        size, shift = window.fit(tokens, self.window_size, self.shift_size, self.swin)
        if not self.training and window.can_attend(x, self.bias_table, self.window_size):
            if not common.can_chunk(x, self.qkv, self.proj):
                return self._inference(tokens, size, shift)
            return torch.cat([self._inference(chunk, size, shift) for chunk in common.chunks(tokens, 3 * self.dim)])
        qkv = self.qkv(window.partition(tokens, size, shift))
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        bias = window.bias_and_mask(self.bias_table, self.window_size, tokens, size, shift, q.dtype)
        out = sdpa(q, k, v, bias, self.attn_drop if self.training else 0.0)
        out = self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))
        return window.merge(out, tokens, size, shift).permute(0, 3, 1, 2)

    def _inference(self, tokens: Tensor, window_hw: tuple[int, int], shift: tuple[int, int]) -> Tensor:
        qkv = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1))
        out = window.attend(qkv, self.bias_table, self.window_size, window_hw, shift)
        return self.proj(out.flatten(3)).permute(0, 3, 1, 2)

    def set_window_size(self, window_size: int) -> None:
        """Change the window; a shift becomes half of it, and the bias table is interpolated bicubically."""
        if window_size < 1:
            raise ValueError(f"window_size must be at least 1, got {window_size}")
        if self.shift_size:
            half_up = self.shift_size == math.ceil(self.window_size / 2)
            self.shift_size = math.ceil(window_size / 2) if half_up else window_size // 2
        with torch.no_grad():
            table = resize_window_table(self.bias_table, 2 * window_size - 1)
        self.bias_table = nn.Parameter(table, requires_grad=self.bias_table.requires_grad)
        self.window_size = window_size


def resize_window_table(table: Tensor, side: int) -> Tensor:
    """Interpolate a bias table of (old side^2, M) displacements bicubically to (side^2, M)."""
    old = math.isqrt(table.shape[0])
    if old == side:
        return table
    image = table.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=(side, side), mode="bicubic", align_corners=False)
    return image.flatten(2)[0].transpose(0, 1).to(table.dtype)
