"""Spatial-reduction attention of the Pyramid Vision Transformer (PVT), which the paper compares with (Table 6)."""

from __future__ import annotations

from timm.layers import LayerNorm2d
from torch import Tensor, nn

from deformvit.layers import common
from deformvit.ops.sdpa import sdpa


class ReductionAttention(nn.Module):
    """Attention whose keys and values come from a map reduced by a strided convolution (PVT, section 3.3).

    Args:
        dim: channels C.
        num_heads: heads M; divides ``dim``.
        reduction: side of the non-overlapping reduction convolution; 1 for none. A map whose size is not a multiple of
            it is padded with zeros at the bottom and right before the convolution, so that no pixel is left out.
        attn_drop: dropout on attention weights.
        proj_drop: dropout on the output.
    """

    def __init__(
        self, dim: int, num_heads: int, reduction: int = 1, attn_drop: float = 0.0, proj_drop: float = 0.0
    ) -> None:
        super().__init__()
        common.check_heads(dim, num_heads)
        if reduction < 1:
            raise ValueError(f"reduction must be at least 1, got {reduction}")
        self.dim = dim
        self.num_heads = num_heads
        self.reduction = reduction
        self.attn_drop = attn_drop
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reduce = (
            nn.Sequential(nn.Conv2d(dim, dim, reduction, reduction), LayerNorm2d(dim, eps=1e-5))
            if reduction > 1
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        common.check_map(x, self.dim)
        tokens = x.permute(0, 2, 3, 1)
        reduced = x if self.reduce is None else self.reduce(common.pad_to_multiple(x, self.reduction))
        q = self.q(tokens).flatten(1, 2).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        kv = self.kv(reduced.permute(0, 2, 3, 1)).flatten(1, 2).unflatten(-1, (2, self.num_heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        out = sdpa(q, k, v, dropout_p=self.attn_drop if self.training else 0.0)
        out = out.transpose(1, 2).reshape(tokens.shape)
        return self.proj_drop(self.proj(out)).permute(0, 3, 1, 2)
