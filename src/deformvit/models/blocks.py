"""Blocks and stages of the network in deformvit.models.network, and their configuration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
from deformvit.layers.common import ConvMlp, apply_in_chunks, can_chunk, check_choice
from deformvit.layers.deformable import Bound, OffsetPadding, Position, Sampling
from deformvit.layers.neighborhood import SmallMap
from deformvit.ops.grid import Convention

BlockName = Literal["window", "shifted", "neighborhood", "deformable", "reduction", "deformable_detr", "conv"]
Shifting = Literal["dat", "swin"]


@dataclass(frozen=True)
class StageSpec:
    """One stage: names of its blocks and their arguments, as explained in :class:`~deformvit.models.network.DAT`."""

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
        for name in self.blocks:
            check_choice("block", name, BlockName)


def stage_specs(depths: Sequence[int], blocks: Sequence[str | Sequence[str]], **values: Any) -> list[StageSpec]:
    """Stage configurations from per-stage values.

    Args:
        depths: number of blocks of each stage.
        blocks: for each stage a pattern of block names, repeated over its depth: ``"window deformable"`` (or a sequence
            of names) at depth 6 is three pairs.
        values: the other fields of :class:`StageSpec`, each as one value for all stages or a sequence of one for each.

    Raises:
        ValueError: a sequence of another length, an unknown block, or a pattern that does not fill its stage.
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
        names: list[Any] = pattern.split() if isinstance(pattern, str) else list(pattern)
        if not names or depth < 1 or depth % len(names):
            raise ValueError(f"stage {i + 1}: blocks {pattern!r} do not repeat evenly to depth {depth}")
        arguments = {name: column[i] for name, column in columns.items()}
        specs.append(StageSpec(blocks=tuple(names * (depth // len(names))), **arguments))
    return specs


@dataclass(frozen=True)
class BlockArgs:
    """Arguments that the blocks of all stages share, as explained in :class:`~deformvit.models.network.DAT`."""

    convention: Convention
    shifting: Shifting
    small_map: SmallMap
    expansion: float
    attn_drop: float
    proj_drop: float


def _attention(name: BlockName, spec: StageSpec, args: BlockArgs, table_size: tuple[int, int]) -> nn.Module:
    """The attention layer of a block; ``table_size`` is the map size that position tables are learned for."""
    drops: dict[str, Any] = {"attn_drop": args.attn_drop, "proj_drop": args.proj_drop}
    if name in ("window", "shifted"):
        swin = args.shifting == "swin"
        # The released code rounds half a window up, Swin down.
        half = spec.window_size // 2 if swin else math.ceil(spec.window_size / 2)
        return WindowAttention(
            spec.dim, spec.num_heads, spec.window_size, half if name == "shifted" else 0, swin, **drops
        )
    if name == "neighborhood":
        return NeighborhoodAttention(spec.dim, spec.num_heads, spec.neighborhood_size, args.small_map, **drops)
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
        convention=args.convention,
        **drops,
    )


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and inside a residual connection (equation 2).

    DAT++ adds a depthwise 3 x 3 convolution in a residual connection before them (local perception unit), and can scale
    the channels of both branches (layer scale).
    """

    def __init__(self, attn: nn.Module, spec: StageSpec, args: BlockArgs, drop_path: float) -> None:
        super().__init__()
        dim, scale = spec.dim, spec.layer_scale
        self.local_perception = nn.Conv2d(dim, dim, 3, padding=1, groups=dim) if spec.local_perception else None
        self.norm1 = LayerNorm2d(dim, eps=1e-5)
        self.attn = attn
        self.scale1 = LayerScale2d(dim, scale) if scale is not None else nn.Identity()
        self.norm2 = LayerNorm2d(dim, eps=1e-5)
        self.mlp = Mlp(dim, args.expansion, spec.conv_mlp, args.proj_drop)
        self.scale2 = LayerScale2d(dim, scale) if scale is not None else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.local_perception is not None:
            x = x + self.local_perception(x)
        x = x + self.drop_path(self.scale1(self.attn(self.norm1(x))))
        if self.mlp.conv is None and can_chunk(x, self.norm2, self.mlp, self.scale2, self.drop_path):
            return apply_in_chunks(self._mlp, x, self.mlp.fc1.out_features)
        return self._mlp(x)

    def _mlp(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))


class ConvBlock(nn.Module):
    """Depthwise convolution, LayerNorm and MLP inside one residual connection (ConvNeXt; block X of released DAT++).

    The kernel size is the stage's ``window_size``.
    """

    def __init__(self, spec: StageSpec, args: BlockArgs, drop_path: float) -> None:
        super().__init__()
        dim, kernel = spec.dim, spec.window_size
        if kernel % 2 == 0:
            raise ValueError(f"conv blocks need an odd window_size, which is their kernel size, got {kernel}")
        self.local_perception = nn.Conv2d(dim, dim, 3, padding=1, groups=dim) if spec.local_perception else None
        self.conv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = LayerNorm2d(dim, eps=1e-5)
        self.mlp = Mlp(dim, args.expansion, spec.conv_mlp, args.proj_drop)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.local_perception is not None:
            x = x + self.local_perception(x)
        return x + self.drop_path(self.mlp(self.norm(self.conv(x))))


class Stage(nn.Module):
    """Downsampling (or the identity) and the blocks of one :class:`StageSpec`."""

    def __init__(
        self, spec: StageSpec, args: BlockArgs, downsample: nn.Module, table_size: tuple[int, int],
        drop_path: Sequence[float],
    ) -> None:  # fmt: skip
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.ModuleList(
            ConvBlock(spec, args, rate)
            if name == "conv"
            else Block(_attention(name, spec, args, table_size), spec, args, rate)
            for name, rate in zip(spec.blocks, drop_path, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H', W')."""
        x = self.downsample(x)
        for block in self.blocks:
            x = checkpoint(block, x) if self.grad_checkpointing else block(x)
        return x
