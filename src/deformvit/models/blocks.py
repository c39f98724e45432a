"""What a stage is made of: StageSpec, Block, Stage. The model that stacks them is in deformvit.models.network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from timm.layers import DropPath, LayerNorm2d, LayerScale2d
from timm.models._manipulate import checkpoint
from torch import Tensor, nn

from deformvit.layers import (
    DeformableAttention,
    DeformableDetrAttention,
    Mlp,
    NeighborhoodAttention,
    ReductionAttention,
    WindowAttention,
)
from deformvit.layers.common import ConvMlp, in_pieces, token_by_token
from deformvit.layers.deformable import Bound, OffsetPadding, Position, Sampling
from deformvit.layers.neighborhood import SmallMap
from deformvit.ops.grid import Convention

BlockName = Literal["window", "shifted", "neighborhood", "deformable", "reduction", "deformable_detr", "conv"]
Shifting = Literal["dat", "swin"]


@dataclass(frozen=True)
class StageSpec:
    """One stage of the pyramid: its blocks by name, and what they need. Units and defaults as in the layers."""

    blocks: tuple[BlockName, ...]
    dim: int
    num_heads: int
    window_size: int
    neighborhood_size: int
    groups: int
    stride: int
    reduction: int
    points: int
    offset_kernel: int
    offset_padding: OffsetPadding
    offset_range: float
    bound: Bound
    offsets: bool
    sampling: Sampling
    position: Position
    conv_mlp: ConvMlp
    local_perception: bool
    layer_scale: float | None

    def __post_init__(self) -> None:
        unknown = [b for b in self.blocks if b not in get_args(BlockName)]
        if unknown:
            raise ValueError(f"unknown block {unknown[0]!r}; expected one of {', '.join(get_args(BlockName))}")


def stage_specs(depths: Sequence[int], blocks: Sequence[str | Sequence[str]], **values: Any) -> list[StageSpec]:
    """Stages from parallel per-stage values, each either one value for all stages or a sequence of one per stage.

    ``blocks`` is one pattern per stage, repeated over its depth: ``"window deformable"`` at depth 6 is three pairs.

    Raises:
        ValueError: a sequence of another length, or a pattern that does not fill its stage.
    """
    stages = len(depths)
    columns: dict[str, Sequence[Any]] = {}
    for name, value in values.items():
        columns[name] = [value] * stages if isinstance(value, str) or not isinstance(value, Sequence) else value
    for name, column in {"blocks": blocks, **columns}.items():
        if len(column) != stages:
            raise ValueError(f"{name} must have one value for each of the {stages} stages, got {column!r}")
    specs = []
    for i, depth in enumerate(depths):
        pattern = blocks[i]
        words = pattern.split() if isinstance(pattern, str) else list(pattern)
        if not words or depth < 1 or depth % len(words):
            raise ValueError(f"stage {i + 1}: blocks {pattern!r} do not repeat evenly to depth {depth}")
        specs.append(
            StageSpec(blocks=tuple(words * (depth // len(words))), **{n: c[i] for n, c in columns.items()})  # type: ignore[arg-type]
        )
    return specs


@dataclass(frozen=True)
class Common:
    """What all blocks of a model share."""

    convention: Convention
    shifting: Shifting
    small_map: SmallMap
    expansion: float
    attn_drop: float
    proj_drop: float


def _attention(name: BlockName, spec: StageSpec, table_size: tuple[int, int], common: Common) -> nn.Module:
    drops: dict[str, Any] = {"attn_drop": common.attn_drop, "proj_drop": common.proj_drop}
    if name in ("window", "shifted"):
        # The released code rounds half a window up, Swin down.
        half = spec.window_size // 2 if common.shifting == "swin" else math.ceil(spec.window_size / 2)
        shift = half if name == "shifted" else 0
        return WindowAttention(spec.dim, spec.num_heads, spec.window_size, shift, common.shifting == "swin", **drops)
    if name == "neighborhood":
        return NeighborhoodAttention(spec.dim, spec.num_heads, spec.neighborhood_size, common.small_map, **drops)
    if name == "reduction":
        return ReductionAttention(spec.dim, spec.num_heads, spec.reduction, **drops)
    if name == "deformable_detr":
        return DeformableDetrAttention(spec.dim, spec.num_heads, spec.points, **drops)
    return DeformableAttention(
        spec.dim,
        spec.num_heads,
        spec.groups,
        stride=spec.stride,
        offset_kernel=spec.offset_kernel,
        offset_padding=spec.offset_padding,
        offset_range=spec.offset_range,
        bound=spec.bound,
        offsets=spec.offsets,
        sampling=spec.sampling,
        position=spec.position,
        table_size=table_size,
        convention=common.convention,
        **drops,
    )


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and around a residual connection (equation 2).

    DAT++ can add a depthwise 3 x 3 convolution of the input to it first (local perception unit), and scale the channels
    of either branch (layer scale).
    """

    def __init__(self, attn: nn.Module, spec: StageSpec, common: Common, drop_path: float) -> None:
        super().__init__()
        dim, scale = spec.dim, spec.layer_scale
        self.local_perception = nn.Conv2d(dim, dim, 3, padding=1, groups=dim) if spec.local_perception else None
        self.norm1 = LayerNorm2d(dim, eps=1e-5)
        self.attn = attn
        self.scale1 = LayerScale2d(dim, scale) if scale is not None else nn.Identity()
        self.norm2 = LayerNorm2d(dim, eps=1e-5)
        self.mlp = Mlp(dim, common.expansion, spec.conv_mlp, common.proj_drop)
        self.scale2 = LayerScale2d(dim, scale) if scale is not None else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.local_perception is not None:
            x = x + self.local_perception(x)
        x = x + self.drop_path(self.scale1(self.attn(self.norm1(x))))
        if self.mlp.conv is None and in_pieces(x, self.norm2, self.mlp, self.scale2, self.drop_path):
            return token_by_token(self._mlp, x, self.mlp.fc1.out_features)
        return self._mlp(x)

    def _mlp(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))


class ConvBlock(nn.Module):
    """Depthwise convolution, LayerNorm and MLP around one residual connection (ConvNeXt; block X of released DAT++).

    The kernel is the stage's window size.
    """

    def __init__(self, spec: StageSpec, common: Common, drop_path: float) -> None:
        super().__init__()
        dim, kernel = spec.dim, spec.window_size
        if kernel % 2 == 0:
            raise ValueError(f"conv blocks need an odd window_size, which is their kernel, got {kernel}")
        self.local_perception = nn.Conv2d(dim, dim, 3, padding=1, groups=dim) if spec.local_perception else None
        self.conv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = LayerNorm2d(dim, eps=1e-5)
        self.mlp = Mlp(dim, common.expansion, spec.conv_mlp, common.proj_drop)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.local_perception is not None:
            x = x + self.local_perception(x)
        return x + self.drop_path(self.mlp(self.norm(self.conv(x))))


class Stage(nn.Module):
    """Downsampling (or nothing) and the blocks of one :class:`StageSpec`."""

    def __init__(
        self, spec: StageSpec, downsample: nn.Module, table_size: tuple[int, int], drop_path: Sequence[float],
        common: Common,
    ) -> None:  # fmt: skip
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.ModuleList(
            ConvBlock(spec, common, rate)
            if name == "conv"
            else Block(_attention(name, spec, table_size, common), spec, common, rate)
            for name, rate in zip(spec.blocks, drop_path, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H', W')."""
        x = self.downsample(x)
        for block in self.blocks:
            x = checkpoint(block, x) if self.grad_checkpointing else block(x)
        return x
