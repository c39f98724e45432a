"""Local attention in windows, plain or shifted (Swin), on maps of any size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a relative position bias (section 3.3; Swin Transformer).

    Maps that are no multiple of the window are padded at the bottom and right; padding is masked out of attention. A
    map that fits into one unshifted window is attended to whole, without padding.

    Args:
        dim: channels C.
        num_heads: heads M; divides ``dim``.
        window_size: side of the square window.
        shift_size: rows and columns by which windows are shifted, 0 to ``window_size - 1``; 0 for none.
        attn_drop: dropout on attention weights.
        proj_drop: dropout on the output.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 7,
        shift_size: int = 0,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if dim < 1 or num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got dim={dim}, num_heads={num_heads}")
        if window_size < 1 or not 0 <= shift_size < window_size:
            raise ValueError(f"shift_size must be in [0, window_size), got {shift_size} for window {window_size}")
        self.dim = dim
        self.num_heads = num_heads
        self.window_size = window_size
        self.shift_size = shift_size
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        trunc_normal_(self.bias_table, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        batch, channels, height, width = x.shape
        size, shift = self.window_size, self.shift_size
        # One unshifted window larger than the map needs no padding: its own queries and keys are all there is.
        win_h, win_w = (size, size) if shift else (min(size, height), min(size, width))
        rows, cols = -(-height // win_h), -(-width // win_w)
        tokens = x.permute(0, 2, 3, 1)
        padded = (rows * win_h, cols * win_w)
        if padded != (height, width):
            tokens = F.pad(tokens, (0, 0, 0, padded[1] - width, 0, padded[0] - height))
        if shift:
            tokens = tokens.roll((-shift, -shift), dims=(1, 2))
        windows = tokens.reshape(batch, rows, win_h, cols, win_w, channels).transpose(2, 3)
        qkv = self.qkv(windows.reshape(batch * rows * cols, win_h * win_w, channels))
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)

        bias = self._bias(win_h, win_w)
        mask = self._mask((height, width), (win_h, win_w), x.device)
        if mask is not None:  # (windows, L, L) -> the batch's windows, one after the other
            bias = torch.where(mask[:, None], bias, float("-inf")).repeat(batch, 1, 1, 1)
        out = F.scaled_dot_product_attention(
            q, k, v, bias.to(q.dtype), dropout_p=self.attn_drop if self.training else 0.0
        )
        out = self.proj_drop(self.proj(out.transpose(1, 2).reshape(windows.shape)))
        out = out.transpose(2, 3).reshape(batch, *padded, channels)
        if shift:
            out = out.roll((shift, shift), dims=(1, 2))
        return out[:, :height, :width].permute(0, 3, 1, 2)

    def _bias(self, win_h: int, win_w: int) -> Tensor:
        """(M, L, L) bias of a win_h x win_w window, a corner of the table's when it is smaller."""
        device = self.bias_table.device
        y, x = (torch.arange(n, device=device).repeat_interleave(r) for n, r in ((win_h, win_w), (win_w, 1)))
        x = x.repeat(win_h)
        side = self.window_size - 1
        index = (y[:, None] - y + side) * (2 * self.window_size - 1) + x[:, None] - x + side
        return self.bias_table[index.flatten()].unflatten(0, index.shape).permute(2, 0, 1)

    def _mask(self, hw: tuple[int, int], win: tuple[int, int], device: torch.device) -> Tensor | None:
        """(windows, L, L) True where query may attend to key: same side of the shift's seam, and no padding."""

        def regions(n: int, w: int) -> tuple[Tensor, Tensor]:
            total = -(-n // w) * w
            index = torch.arange(total, device=device)
            seam = (index >= total - self.shift_size).long() if self.shift_size else torch.zeros_like(index)
            source = (index + self.shift_size) % total  # the pixel that stands here after the roll
            return seam.reshape(-1, w), (source < n).reshape(-1, w)

        if not self.shift_size and hw[0] % win[0] == 0 and hw[1] % win[1] == 0:
            return None
        (seam_y, real_y), (seam_x, real_x) = regions(hw[0], win[0]), regions(hw[1], win[1])

        def windows(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:  # (rows, h), (cols, w) -> (rows * cols, h * w)
            shape = y.shape[0], x.shape[0], y.shape[1], x.shape[1]
            y_all, x_all = y[:, None, :, None].expand(shape), x[None, :, None, :].expand(shape)
            return y_all.reshape(-1, shape[2] * shape[3]), x_all.reshape(-1, shape[2] * shape[3])

        sy, sx = windows(seam_y, seam_x)
        ry, rx = windows(real_y, real_x)
        region = torch.where(ry & rx, 2 * sy + sx, -1)  # padding is its own region, so no row is empty
        return region[:, :, None] == region[:, None, :]
