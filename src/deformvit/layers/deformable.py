"""Deformable multi-head attention, section 3.2 of "Vision Transformer with Deformable Attention" (arXiv 2201.00520).

Steps and their equations (docs/equations.md): reference points (3) are moved by offsets that a small network reads from
the queries (4), features are sampled there (5), and all queries attend to these shared keys (6).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d, trunc_normal_
from torch import Tensor, nn

from deformvit.ops import deform_attn, grid

Position = Literal["relative", "fixed", "dwconv", "none"]
Bound = Literal["range", "tanh", "clamp", "none"]


class DeformedPoints(nn.Module):
    """Reference points moved by the offset network (equations 3 and 4).

    Per group, all groups sharing one network: depthwise k x k convolution of stride r, LayerNorm, GELU, and a 1 x 1
    convolution to (y, x) without bias, since a bias would shift all points alike.

    Args:
        dim: channels C of the queries.
        groups: offset groups G.
        stride: r, queries per key along an axis.
        kernel_size: k of the depthwise convolution, odd.
        offset_range: s, see ``bound="range"``. 0 means no offsets.
        bound: what keeps points near the map. ``"range"``: offsets are ``s * tanh(.)`` key-grid units (the paper's);
            ``"tanh"``: tanh of the position (released code, negative range); ``"clamp"``: positions clamped to [-1, 1]
            (DAT++); ``"none"``: offsets as they are (released code of v1, range 0).
        offsets: False leaves the reference points where they are and has no parameters (rows 1 and 2 of Table 6).
        convention: see :mod:`deformvit.ops.grid`.
    """

    def __init__(
        self,
        dim: int,
        groups: int,
        stride: int = 1,
        kernel_size: int = 5,
        offset_range: float = 2.0,
        bound: Bound = "range",
        offsets: bool = True,
        convention: grid.Convention = "v1",
    ) -> None:
        super().__init__()
        if bound not in get_args(Bound):
            raise ValueError(f"unknown bound {bound!r}; expected one of {', '.join(get_args(Bound))}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"offset kernel size must be odd and positive, got {kernel_size}")
        if stride < 1:
            raise ValueError(f"stride must be at least 1, got {stride}")
        if offset_range < 0 or not math.isfinite(offset_range):
            raise ValueError(f"offset_range must be finite and not negative, got {offset_range}; see bound")
        grid.check_convention(convention)
        self.groups = groups
        self.stride = stride
        self.offset_range = offset_range
        self.bound = bound
        self.convention = convention
        self.offset_net: nn.Sequential | None = None
        if offsets and not (bound == "range" and offset_range == 0):
            channels = dim // groups
            self.offset_net = nn.Sequential(
                nn.Conv2d(channels, channels, kernel_size, stride, kernel_size // 2, groups=channels),
                LayerNorm2d(channels, eps=1e-5),
                nn.GELU(),
                nn.Conv2d(channels, 2, 1, bias=False),
            )

    def reference(
        self, height: int, width: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """(H_G, W_G, 2) reference points of a height x width map, H_G = ceil(H / r)."""
        rows, cols = -(-height // self.stride), -(-width // self.stride)
        return grid.reference_points(rows, cols, self.convention, device=device, dtype=dtype)

    def forward(self, q: Tensor) -> Tensor:
        """(B, C, H, W) queries -> (B, G, H_G, W_G, 2) deformed points (y, x), normalised, at least float32."""
        batch, _, height, width = q.shape
        dtype = torch.promote_types(q.dtype, torch.float32)  # bfloat16 resolves 1/128 of the map at its border
        reference = self.reference(height, width, device=q.device, dtype=dtype)
        if self.offset_net is None:
            return reference.expand(batch, self.groups, *reference.shape)
        offset = self.offset_net(q.reshape(batch * self.groups, -1, height, width)).permute(0, 2, 3, 1).to(dtype)
        if self.bound == "range":
            rows, cols = reference.shape[:2]
            unit = grid.key_cell(rows, cols, self.convention, device=q.device, dtype=dtype)
            offset = offset.tanh() * (self.offset_range * unit)
        pos = reference + offset
        if self.bound == "tanh":
            pos = pos.tanh()
        elif self.bound == "clamp":
            pos = pos.clamp(-1.0, 1.0)
        return pos.unflatten(0, (batch, self.groups))


class DeformableAttention(nn.Module):
    """Drop-in attention on (B, C, H, W) maps whose keys move to where the image matters (section 3.2).

    ``DeformableAttention(dim=256, num_heads=8, groups=4)`` is enough in somebody else's network: any H and W.

    Args:
        dim: channels C.
        num_heads: heads M; divides ``dim``.
        groups: offset groups G; divides ``num_heads``. Heads of one group share deformed keys and values.
        stride: r; the key grid is ceil(H / r) x ceil(W / r).
        offset_kernel: k of the offset network's depthwise convolution (the paper: 5 at stage 3, 3 at stage 4).
        offset_range: s, the largest offset in half key-grid cells (section 3.2; 2 in all published models).
        bound: how positions are bounded, see :class:`DeformedPoints`.
        offsets: False keeps the keys at the reference points.
        position: ``"relative"``: table interpolated at the displacement of query and deformed key (the paper's);
            ``"fixed"``: a learned bias for every pair of query and key; ``"dwconv"``: a depthwise 3 x 3 convolution of
            the queries added to the output; ``"none"``.
        table_size: (H, W) of the map for which the table is learned, ``(2H-1, 2W-1)`` per head for "relative" and
            ``(H*W, keys)`` for "fixed". Other map sizes work: "relative" interpolates at normalised displacements,
            "fixed" is resized bicubically over queries and keys.
        convention: coordinates, see :mod:`deformvit.ops.grid`.
        attn_drop: dropout on attention weights.
        proj_drop: dropout on the output.

    Raises:
        ValueError: an argument that does not fit, named with its value.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        groups: int = 1,
        *,
        stride: int = 1,
        offset_kernel: int = 5,
        offset_range: float = 2.0,
        bound: Bound = "range",
        offsets: bool = True,
        position: Position = "relative",
        table_size: tuple[int, int] = (14, 14),
        convention: grid.Convention = "v1",
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if dim < 1 or num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got dim={dim}, num_heads={num_heads}")
        if groups < 1 or num_heads % groups:
            raise ValueError(f"num_heads must be a multiple of groups, got num_heads={num_heads}, groups={groups}")
        if position not in get_args(Position):
            raise ValueError(f"unknown position {position!r}; expected one of {', '.join(get_args(Position))}")
        self.dim = dim
        self.num_heads = num_heads
        self.groups = groups
        self.stride = stride
        self.position = position
        self.convention: grid.Convention = convention
        self.attn_drop = attn_drop
        self.points = DeformedPoints(dim, groups, stride, offset_kernel, offset_range, bound, offsets, convention)
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

        height, width = self.table_size = table_size
        self.bias_table: nn.Parameter | None = None
        self.local_conv: nn.Conv2d | None = None
        if position == "relative":
            self.bias_table = nn.Parameter(torch.empty(num_heads, 2 * height - 1, 2 * width - 1))
        elif position == "fixed":
            keys = -(-height // stride) * -(-width // stride)
            self.bias_table = nn.Parameter(torch.empty(num_heads, height * width, keys))
        elif position == "dwconv":
            self.local_conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        if self.bias_table is not None:
            trunc_normal_(self.bias_table, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if x.ndim != 4 or x.shape[1] != self.dim:
            raise ValueError(f"expected (B, {self.dim}, H, W), got {tuple(x.shape)}")
        batch, _, height, width = x.shape
        tokens = x.permute(0, 2, 3, 1)
        q = self.q(tokens)
        q_map = q.permute(0, 3, 1, 2)
        pos = self.points(q_map)
        sampled = grid.sample(x.reshape(batch * self.groups, -1, height, width), pos.flatten(0, 1))
        sampled = sampled.reshape(batch, self.dim, -1).transpose(1, 2)  # (B, N, C)
        q, k, v = (
            t.reshape(batch, -1, self.num_heads, self.dim // self.num_heads).transpose(1, 2)
            for t in (q, self.k(sampled), self.v(sampled))
        )
        dropout_p = self.attn_drop if self.training else 0.0
        if self.position == "fixed":
            bias = self._fixed_bias((height, width)).to(q.dtype)
            out = F.scaled_dot_product_attention(q, k, v, bias, dropout_p)
        else:
            table = self.bias_table
            out = deform_attn(
                q, k, v, pos.flatten(2, 3), table,
                query_hw=(height, width), convention=self.convention, dropout_p=dropout_p,
            )  # fmt: skip
        out = out.transpose(1, 2).reshape(batch, height, width, self.dim)
        if self.local_conv is not None:
            out = out + self.local_conv(q_map).permute(0, 2, 3, 1)
        return self.proj_drop(self.proj(out)).permute(0, 3, 1, 2)

    def _fixed_bias(self, query_hw: tuple[int, int]) -> Tensor:
        """(M, queries, keys) for a map of any size."""
        assert self.bias_table is not None
        if query_hw == self.table_size:
            return self.bias_table
        return resize_fixed_bias(self.bias_table, self.table_size, query_hw, self.stride)


def resize_fixed_bias(table: Tensor, old_hw: tuple[int, int], new_hw: tuple[int, int], stride: int) -> Tensor:
    """Resize a "fixed" position bias (M, queries, keys) bicubically, first over the keys' map, then the queries'."""

    def keys(hw: tuple[int, int]) -> tuple[int, int]:
        return -(-hw[0] // stride), -(-hw[1] // stride)

    def resize(rows: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:  # (M, R, old) -> (M, R, new)
        maps = rows.unflatten(-1, old).float()
        return F.interpolate(maps, size=new, mode="bicubic", align_corners=False).flatten(-2).to(rows.dtype)

    over_keys = resize(table, keys(old_hw), keys(new_hw))
    return resize(over_keys.transpose(1, 2), old_hw, new_hw).transpose(1, 2)
