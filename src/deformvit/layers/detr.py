"""Deformable DETR's attention (arXiv 2010.04159) on one map, which the paper compares with (Table 8)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from deformvit.layers import common
from deformvit.ops import grid


@torch.fx.wrap
def _sample_and_average(values: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of the values at every query's points.

    Args:
        values: (B, M, d, H, W).
        offsets: (B, H, W, M, K, 2) in pixels from the query.
        weights: (B, H, W, M, K).

    Returns:
        (B, H, W, M * d).
    """
    batch, heads, _, height, width = values.shape
    dtype = torch.promote_types(offsets.dtype, torch.float32)
    queries = grid.query_points((height, width), "aligned", device=values.device, dtype=dtype)
    index = grid.to_index(queries, (height, width))[:, :, None, None] + offsets.to(dtype)
    pos = grid.from_index(index, (height, width)).movedim(3, 1)  # (B, M, H, W, K, 2)
    sampled = grid.sample(values.flatten(0, 1), pos.flatten(0, 1).flatten(1, 2))  # (B M, d, H W, K)
    mean = (sampled * weights.movedim(3, 1).flatten(0, 1).flatten(1, 2)[:, None]).sum(-1)
    return mean.reshape(batch, heads, -1, height, width).flatten(1, 2).permute(0, 2, 3, 1)


class DeformableDetrAttention(nn.Module):
    """Every query averages values sampled at its own points (Deformable DETR, equation 2, on a single map).

    Offsets, in pixels from the query, and attention weights are linear in the query. There are no keys, and queries
    share no points: memory and sampling grow with queries x points.

    Args:
        dim: channels C.
        num_heads: heads M; divides ``dim``.
        points: K sampled points of each query and head.
        attn_drop: dropout on attention weights.
        proj_drop: dropout on the output.
    """

    def __init__(
        self, dim: int, num_heads: int, points: int = 16, attn_drop: float = 0.0, proj_drop: float = 0.0
    ) -> None:
        super().__init__()
        common.check_heads(dim, num_heads)
        if points < 1:
            raise ValueError(f"points must be at least 1, got {points}")
        self.dim = dim
        self.num_heads = num_heads
        self.points = points
        self.offsets = nn.Linear(dim, num_heads * points * 2)
        self.weights = nn.Linear(dim, num_heads * points)
        self.value = nn.Linear(dim, dim)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self._init_offsets()

    def _init_offsets(self) -> None:
        """Each head's points lie in one direction at growing distances, with equal weights (Deformable DETR, A.4)."""
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack([angle.sin(), angle.cos()], -1)  # (y, x)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        # At most seven pixels: 196 points one pixel apart would mostly lie outside a 14 x 14 map, without gradient.
        radius = torch.linspace(1, min(self.points, 7), self.points)
        with torch.no_grad():
            self.offsets.bias.copy_((direction[:, None] * radius[:, None]).flatten())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        common.check_map(x, self.dim)
        tokens = x.permute(0, 2, 3, 1)
        offsets = self.offsets(tokens).unflatten(-1, (self.num_heads, self.points, 2))
        weights = self.weights(tokens).unflatten(-1, (self.num_heads, self.points)).softmax(-1)
        values = self.value(tokens).permute(0, 3, 1, 2).unflatten(1, (self.num_heads, -1))
        out = _sample_and_average(values, offsets, self.attn_drop(weights))
        return self.proj_drop(self.proj(out)).permute(0, 3, 1, 2)
