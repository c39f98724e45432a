"""Deformable multi-head attention, section 3.2 of "Vision Transformer with Deformable Attention" (arXiv 2201.00520).

Steps and their equations (docs/equations.md): reference points (3) are moved by offsets that a small network predicts
from the queries (4), features are sampled there (5), and all queries attend to these shared keys (6).

The same code takes images (B, C, H, W), and with ``axes`` 1 and 3 sequences (B, C, L) and volumes (B, C, D, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from deformvit.layers import common
from deformvit.ops import deform_attn, grid, log_displacement
from deformvit.ops.sdpa import sdpa

torch.fx.wrap("deform_attn")
torch.fx.wrap("log_displacement")

Position = Literal["relative", "log_cpb", "fixed", "dwconv", "none"]
Bound = Literal["range", "tanh", "clamp", "none"]
Sampling = Literal["bilinear", "pooled"]
OffsetPadding = Literal["same", "none"]

CONV: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@torch.fx.wrap
def _references(q: Tensor, groups: int, stride: int, bound: Bound, convention: grid.Convention) -> Tensor:
    """(B, G, *key grid, n) undeformed points for the (B, C, ...) map of the queries."""
    size = [-(-n // stride) for n in q.shape[2:]]
    dtype = torch.promote_types(q.dtype, torch.float32)
    points = grid.reference_points(size, convention, device=q.device, dtype=dtype)
    if bound == "clamp":
        points = points.clamp(-1.0, 1.0)
    return points.expand(q.shape[0], groups, *points.shape)


@torch.fx.wrap
def _deform(offset: Tensor, groups: int, offset_range: float, bound: Bound, convention: grid.Convention) -> Tensor:
    """(B * G, n, *key grid) output of the offset network -> (B, G, *key grid, n) points."""
    dtype = torch.promote_types(offset.dtype, torch.float32)  # bfloat16 resolves 1/128 of the map at its border
    size = offset.shape[2:]
    reference = grid.reference_points(size, convention, device=offset.device, dtype=dtype)
    offset = offset.movedim(1, -1).to(dtype)
    if bound == "range":
        offset = offset.tanh() * (offset_range * grid.key_cell(size, convention, device=offset.device, dtype=dtype))
    pos = reference + offset
    if bound == "tanh":
        pos = pos.tanh()
    elif bound == "clamp":
        pos = pos.clamp(-1.0, 1.0)
    return pos.unflatten(0, (-1, groups))


class DeformedPoints(nn.Module):
    """Reference points moved by the offset network (equations 3 and 4).

    The same network for every group: depthwise k x k convolution of stride r, LayerNorm, GELU, and a 1 x 1 convolution
    to (y, x) without bias, since a bias would shift all points by the same amount.

    Args:
        dim: channels C of the queries.
        groups: offset groups G.
        stride: r, queries per key along an axis.
        kernel_size: k of the depthwise convolution, odd.
        offset_range: s, see ``bound="range"``. 0 means no offsets.
        bound: how positions are bounded. ``"range"``: offsets are ``s * tanh(.)`` key-grid units (the paper's);
            ``"tanh"``: tanh of the position (released code, negative range); ``"clamp"``: positions clamped to [-1, 1]
            (DAT++); ``"none"``: offsets as they are (released code of v1, range 0).
        offsets: False returns the reference points and has no parameters (rows 1 and 2 of Table 6).
        convention: see :mod:`deformvit.ops.grid`.
        padding: of the depthwise convolution. ``"same"`` centres an odd kernel on its key's query; with ``"none"``
            kernels of side r do not overlap (released DAT++ where kernel and stride are equal).
        axes: 1 for sequences, 2 for maps, 3 for volumes.
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
        padding: OffsetPadding = "same",
        axes: int = 2,
    ) -> None:
        super().__init__()
        common.check_choice("bound", bound, Bound)
        common.check_choice("padding", padding, OffsetPadding)
        grid.check_convention(convention)
        if stride < 1:
            raise ValueError(f"stride must be at least 1, got {stride}")
        if padding == "same" and (kernel_size < 1 or kernel_size % 2 == 0):
            raise ValueError(f"offset kernel size must be odd and positive, got {kernel_size}")
        if padding == "none" and kernel_size != stride:
            raise ValueError(
                f"without padding the offset kernel must have the stride's size {stride}, got {kernel_size}"
            )
        if offset_range < 0 or not math.isfinite(offset_range):
            raise ValueError(f"offset_range must be finite and not negative, got {offset_range}; see bound")
        self.groups = groups
        self.stride = stride
        self.offset_range = offset_range
        self.bound: Bound = bound
        self.convention: grid.Convention = convention
        self.padding = padding
        self.offset_net: nn.Sequential | None = None
        if offsets and not (bound == "range" and offset_range == 0):
            channels, conv = dim // groups, CONV[axes]
            side = kernel_size // 2 if padding == "same" else 0
            self.offset_net = nn.Sequential(
                conv(channels, channels, kernel_size, stride, side, groups=channels),
                common.ChannelNorm(channels, eps=1e-5),
                nn.GELU(),
                conv(channels, axes, 1, bias=False),
            )

    def reference(self, *size: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """(H_G, W_G, 2) reference points of a map of that height and width, H_G = ceil(H / r)."""
        key_grid = [-(-n // self.stride) for n in size]
        return grid.reference_points(key_grid, self.convention, device=device, dtype=dtype)

    def forward(self, q: Tensor) -> Tensor:
        """(B, C, H, W) queries -> (B, G, H_G, W_G, 2) deformed points (y, x), normalised, at least float32."""
        if self.offset_net is None:
            return _references(q, self.groups, self.stride, self.bound, self.convention)
        q = q.unflatten(1, (self.groups, -1)).flatten(0, 1)
        if self.padding == "none":
            q = common.pad_to_multiple(q, self.stride)
        return _deform(self.offset_net(q), self.groups, self.offset_range, self.bound, self.convention)


class DeformableAttention(nn.Module):
    """Attention on (B, C, H, W) maps whose keys and values are sampled at learned offsets (section 3.2).

    ``DeformableAttention(dim=256, num_heads=8, groups=4)`` can replace a layer of another network, at any H and W. With
    ``axes=1`` it takes sequences (B, C, L), with ``axes=3`` volumes (B, C, D, H, W).

    Args:
        dim: channels C.
        num_heads: heads M; divides ``dim``.
        groups: offset groups G; divides ``num_heads``. Heads of one group share deformed keys and values.
        stride: r; the key grid is ceil(H / r) x ceil(W / r).
        offset_kernel: k of the offset network's depthwise convolution (the paper: 5 at stage 3, 3 at stage 4).
        offset_range: s, the largest offset in half key-grid cells (section 3.2; 2 in all published models).
        bound: how positions are bounded, see :class:`~deformvit.layers.DeformedPoints`.
        offsets: False samples keys and values at the reference points.
        position: ``"relative"``: table interpolated at the displacement of query and deformed key (the paper's);
            ``"log_cpb"``: a small network of the log-spaced displacement (Swin V2's continuous position bias; DAT++);
            ``"fixed"``: a learned bias for every pair of query and key; ``"dwconv"``: a depthwise 3 x 3 convolution of
            the queries added to the output; ``"none"``.
        table_size: (H, W) of the map for which the table is learned, ``(2H-1, 2W-1)`` per head for "relative" and
            ``(H*W, keys)`` for "fixed"; by default 14 for every axis. Other map sizes work: "relative" interpolates at
            normalised displacements, "fixed" is resized bicubically over queries and keys (two axes only).
        convention: coordinates, see :mod:`deformvit.ops.grid`.
        sampling: ``"bilinear"`` at the points, or ``"pooled"``: keys are means of r x r cells instead (released DAT++
            where offsets are off).
        offset_padding: of the offset network's convolution, see :class:`~deformvit.layers.DeformedPoints`.
        axes: 1 for sequences, 2 for maps, 3 for volumes.
        attn_drop: dropout on attention weights.
        proj_drop: dropout on the output.

    Raises:
        ValueError: an argument with a wrong value; the message names both.
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
        table_size: Sequence[int] | None = None,
        convention: grid.Convention = "v1",
        sampling: Sampling = "bilinear",
        offset_padding: OffsetPadding = "same",
        axes: int = 2,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        common.check_heads(dim, num_heads)
        if groups < 1 or num_heads % groups:
            raise ValueError(f"num_heads must be a multiple of groups, got num_heads={num_heads}, groups={groups}")
        common.check_choice("position", position, Position)
        common.check_choice("sampling", sampling, Sampling)
        if axes not in CONV:
            raise ValueError(f"axes must be 1, 2 or 3, got {axes}")
        if sampling == "pooled" and offsets:
            raise ValueError("sampling='pooled' has no points to move; it needs offsets=False")
        if sampling == "pooled" and position in ("relative", "log_cpb"):
            raise ValueError(f"position={position!r} needs the points that sampling='pooled' does not use")
        if position == "fixed" and axes != 2:
            raise ValueError(f"position='fixed' is for maps, axes=2; got axes={axes}")
        self.table_size = (14,) * axes if table_size is None else tuple(table_size)
        if len(self.table_size) != axes or min(self.table_size) < 1:
            raise ValueError(f"table_size must be {axes} positive sizes, got {self.table_size}")
        self.dim = dim
        self.num_heads = num_heads
        self.groups = groups
        self.stride = stride
        self.position = position
        self.convention: grid.Convention = convention
        self.sampling = sampling
        self.axes = axes
        self.attn_drop = attn_drop
        self.points = DeformedPoints(
            dim, groups, stride, offset_kernel, offset_range, bound, offsets, convention, offset_padding, axes
        )
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

        self.bias_table: nn.Parameter | None = None
        self.bias_mlp: nn.Sequential | None = None
        self.local_conv: nn.Module | None = None
        if position in ("relative", "fixed"):
            self.bias_table = nn.Parameter(torch.empty(self.table_shape(self.table_size)))
            trunc_normal_(self.bias_table, std=0.01)
        elif position == "log_cpb":
            heads = num_heads // groups
            self.bias_mlp = nn.Sequential(nn.Linear(axes, 32), nn.ReLU(), nn.Linear(32, heads, bias=False))
        elif position == "dwconv":
            self.local_conv = CONV[axes](dim, dim, 3, padding=1, groups=dim)

    def table_shape(self, size: Sequence[int]) -> tuple[int, ...]:
        """Shape of the position table for a map of that size."""
        if self.position == "relative":
            return (self.num_heads, *(2 * n - 1 for n in size))
        return (self.num_heads, math.prod(size), math.prod(-(-n // self.stride) for n in size))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        common.check_map(x, self.dim, self.axes)
        q_tokens = self.q(x.movedim(1, -1))
        q_map = q_tokens.movedim(-1, 1)
        pos = self.points(q_map)
        if self.sampling == "pooled":
            sampled = POOL[self.axes](x, self.stride, self.stride, ceil_mode=True)
        else:
            sampled = grid.sample(x.unflatten(1, (self.groups, -1)).flatten(0, 1), pos.flatten(0, 1))
            sampled = sampled.unflatten(0, (-1, self.groups)).flatten(1, 2)
        sampled = sampled.flatten(2).transpose(1, 2)  # (B, N, C)
        q, k, v = (
            tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for tokens in (q_tokens.flatten(1, -2), self.k(sampled), self.v(sampled))
        )
        out = self._attend(q, k, v, pos, x.shape[2:])
        out = out.transpose(1, 2).reshape(q_tokens.shape)
        if self.local_conv is not None:
            out = out + self.local_conv(q_map).movedim(1, -1)
        return self.proj_drop(self.proj(out)).movedim(-1, 1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, pos: Tensor, size: Sequence[int]) -> Tensor:
        dropout_p = self.attn_drop if self.training else 0.0
        if self.bias_mlp is not None:
            bias = self.bias_mlp(log_displacement(pos.flatten(2, -2), size, self.convention).to(q.dtype))
            bias = bias.movedim(-1, 1).unflatten(0, (-1, self.groups)).flatten(1, 2)
            return sdpa(q, k, v, bias.to(q.dtype), dropout_p)
        if self.position == "fixed":
            assert self.bias_table is not None
            bias = resize_fixed_bias(self.bias_table, self.table_size, size, self.stride)
            return sdpa(q, k, v, bias.to(q.dtype), dropout_p)
        return deform_attn(
            q, k, v, pos.flatten(2, -2), self.bias_table,
            query_hw=size, convention=self.convention, dropout_p=dropout_p,
        )  # fmt: skip

    def set_table_size(self, size: Sequence[int]) -> None:
        """Interpolate the position table to another nominal map size, as for fine-tuning at another resolution."""
        size = tuple(size)
        if self.bias_table is not None and size != self.table_size:
            with torch.no_grad():
                table = resize_table(self.bias_table, self, self.table_size, size)
            self.bias_table = nn.Parameter(table, requires_grad=self.bias_table.requires_grad)
        self.table_size = size


def resize_table(table: Tensor, layer: DeformableAttention, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Interpolate a position table of ``layer``, learned for maps of size ``old``, to ``new``; bicubically on maps."""
    if layer.position == "fixed":
        return resize_fixed_bias(table, old, new, layer.stride)
    mode = {1: "linear", 2: "bicubic", 3: "trilinear"}[layer.axes]
    sides = layer.table_shape(new)[1:]
    return F.interpolate(table[None].float(), size=sides, mode=mode, align_corners=False)[0].to(table.dtype)


@torch.fx.wrap
def resize_fixed_bias(table: Tensor, old_hw: Sequence[int], new_hw: Sequence[int], stride: int) -> Tensor:
    """Resize a "fixed" position bias (M, queries, keys) bicubically, first over the keys' map, then the queries'."""
    if tuple(old_hw) == tuple(new_hw):
        return table

    def keys(hw: Sequence[int]) -> tuple[int, int]:
        return -(-hw[0] // stride), -(-hw[1] // stride)

    def resize(rows: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:  # (M, R, old) -> (M, R, new)
        maps = rows.unflatten(-1, tuple(old)).float()
        return F.interpolate(maps, size=tuple(new), mode="bicubic", align_corners=False).flatten(-2).to(rows.dtype)

    over_keys = resize(table, keys(old_hw), keys(new_hw))
    return resize(over_keys.transpose(1, 2), old_hw, new_hw).transpose(1, 2)
