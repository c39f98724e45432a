"""Vision Transformer with Deformable Attention (DAT).

Paper: Zhuofan Xia, Xuran Pan, Shiji Song, Li Erran Li, Gao Huang: "Vision Transformer with Deformable Attention",
CVPR 2022, https://arxiv.org/abs/2201.00520. Original code: https://github.com/LeapLabTHU/DAT (Apache-2.0). This is an
independent implementation that loads the released checkpoints exactly (deformvit.models.convert).

Reading order: StageSpec (what a stage is), PatchEmbed, Block, Stage, DAT, then the registered entry points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead, DropPath, LayerNorm2d, to_2tuple
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint
from torch import Tensor, nn

from deformvit.layers import DeformableAttention, Mlp, ReductionAttention, WindowAttention
from deformvit.layers.common import ConvMlp
from deformvit.layers.deformable import Bound, Position
from deformvit.ops.grid import Convention

BlockName = Literal["window", "shifted", "deformable", "reduction"]
Embed = Literal["patch", "conv"]
T = TypeVar("T")
PerStage: TypeAlias = "T | Sequence[T]"
"""One value for all stages, or one for each."""


@dataclass(frozen=True)
class StageSpec:
    """One stage of the pyramid: its blocks by name, and what they need. Units and defaults as in the layers."""

    blocks: tuple[BlockName, ...]
    dim: int
    num_heads: int
    window_size: int
    groups: int
    stride: int
    reduction: int
    offset_kernel: int
    offset_range: float
    bound: Bound
    offsets: bool
    position: Position
    conv_mlp: ConvMlp

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


class PatchEmbed(nn.Module):
    """Strided convolution and norm; on a map that is no multiple of the stride the rest is zero-padded, never dropped.

    Args:
        kernel: side of the kernel; ``stride`` for patches side by side, an odd number for overlapping ones (Table 9).
    """

    def __init__(self, in_chans: int, dim: int, stride: int, kernel: int, bias: bool) -> None:
        super().__init__()
        if kernel != stride and (kernel < stride or kernel % 2 == 0):
            raise ValueError(f"an overlapping kernel must be odd and at least the stride {stride}, got {kernel}")
        self.stride = stride
        self.overlap = overlap = kernel != stride
        self.conv = nn.Conv2d(in_chans, dim, kernel, stride, (kernel // 2) if overlap else 0, bias=bias)
        self.norm = LayerNorm2d(dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, dim, ceil(H / stride), ceil(W / stride))."""
        if not self.overlap:
            height, width = x.shape[-2:]
            if height % self.stride or width % self.stride:
                x = F.pad(x, (0, -width % self.stride, 0, -height % self.stride))
        return self.norm(self.conv(x))


def _attention(name: BlockName, spec: StageSpec, table_size: tuple[int, int], options: dict[str, Any]) -> nn.Module:
    drops = {"attn_drop": options["attn_drop"], "proj_drop": options["proj_drop"]}
    if name == "window":
        return WindowAttention(spec.dim, spec.num_heads, spec.window_size, **drops)
    if name == "shifted":  # the released code rounds half a window up, Swin down
        return WindowAttention(spec.dim, spec.num_heads, spec.window_size, math.ceil(spec.window_size / 2), **drops)
    if name == "reduction":
        return ReductionAttention(spec.dim, spec.num_heads, spec.reduction, **drops)
    return DeformableAttention(
        spec.dim,
        spec.num_heads,
        spec.groups,
        stride=spec.stride,
        offset_kernel=spec.offset_kernel,
        offset_range=spec.offset_range,
        bound=spec.bound,
        offsets=spec.offsets,
        position=spec.position,
        table_size=table_size,
        convention=options["convention"],
        **drops,
    )


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and around a residual connection (equation 2).

    Args:
        local_perception: add a depthwise 3 x 3 convolution of the input to it first (DAT++'s local perception unit).
    """

    def __init__(self, attn: nn.Module, mlp: nn.Module, dim: int, drop_path: float, local_perception: bool) -> None:
        super().__init__()
        self.local_perception = nn.Conv2d(dim, dim, 3, padding=1, groups=dim) if local_perception else None
        self.norm1 = LayerNorm2d(dim, eps=1e-5)
        self.attn = attn
        self.norm2 = LayerNorm2d(dim, eps=1e-5)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.local_perception is not None:
            x = x + self.local_perception(x)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """Downsampling (or nothing) and the blocks of one :class:`StageSpec`."""

    def __init__(
        self, spec: StageSpec, downsample: nn.Module, table_size: tuple[int, int], drop_path: Sequence[float],
        options: dict[str, Any],
    ) -> None:  # fmt: skip
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.ModuleList(
            Block(
                _attention(name, spec, table_size, options),
                Mlp(spec.dim, options["expansion"], spec.conv_mlp, options["proj_drop"]),
                spec.dim,
                rate,
                options["local_perception"],
            )
            for name, rate in zip(spec.blocks, drop_path, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H', W')."""
        x = self.downsample(x)
        for block in self.blocks:
            x = checkpoint(block, x) if self.grad_checkpointing else block(x)
        return x


class DAT(nn.Module):
    """Deformable Attention Transformer: a pyramid of four stages with strides 4, 8, 16, 32 (section 3.3, Table 1).

    Arguments marked * take one value for all stages or one for each. Any input size works in forward; ``img_size`` is
    the nominal size that position tables are learned for.

    Args:
        img_size: nominal height and width of images.
        in_chans: image channels.
        num_classes: classes; 0 for no classifier.
        global_pool: timm's name of the pooling before the classifier; "" for none.
        patch_size: stride of the patch embedding.
        depths: blocks of each stage.
        dims: channels of each stage.
        num_heads: attention heads of each stage.
        blocks: pattern of block names of each stage, see :func:`stage_specs`.
        window_size: * side of attention windows.
        groups: * offset groups G.
        stride: * r, queries per deformed key along an axis.
        reduction: * reduction of keys in "reduction" blocks (PVT's: 8, 4, 2, 1).
        offset_kernel: * kernel of the offset network.
        offset_range: * s; 0 turns offsets off.
        bound: * what bounds positions, see :class:`~deformvit.layers.DeformedPoints`.
        offsets: * False for attention to the undeformed grid (Table 6).
        position: * position embedding of deformable blocks: "relative", "fixed", "dwconv" or "none" (Table 6).
        convention: coordinates of deformable blocks, see :mod:`deformvit.ops.grid`.
        embed: "patch" for non-overlapping patch embedding and downsampling, "conv" for overlapping (Table 9): kernels
            of 2 * stride - 1, the released 7 x 7 stride 4 and 3 x 3 stride 2.
        stem_kernel: another kernel for the overlapping patch embedding.
        conv_mlp: * the depthwise 3 x 3 convolution inside every MLP: "none", "plain" (v1) or "residual" (DAT++).
        local_perception: a depthwise 3 x 3 convolution before every block (DAT++).
        expansion: hidden channels of MLPs as a multiple of their channels.
        stem_dim: channels of the patch embedding if not ``dims[0]``; a 1 x 1 convolution then leads to stage 1.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout after projections and in MLPs.
        attn_drop_rate: dropout on attention weights.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.
    """

    def __init__(
        self,
        *,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        patch_size: int = 4,
        depths: Sequence[int] = (2, 2, 6, 2),
        dims: Sequence[int] = (96, 192, 384, 768),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        blocks: Sequence[str | Sequence[str]] = ("window shifted",) * 2 + ("window deformable",) * 2,
        window_size: PerStage[int] = 7,
        groups: PerStage[int] = (1, 2, 3, 6),
        stride: PerStage[int] = 1,
        reduction: PerStage[int] = (8, 4, 2, 1),
        offset_kernel: PerStage[int] = (9, 7, 5, 3),
        offset_range: PerStage[float] = 2.0,
        bound: PerStage[Bound] = "range",
        offsets: PerStage[bool] = True,
        position: PerStage[Position] = "relative",
        convention: Convention = "v1",
        embed: Embed = "patch",
        stem_kernel: int | None = None,
        conv_mlp: PerStage[ConvMlp] = "none",
        local_perception: bool = False,
        expansion: float = 4.0,
        stem_dim: int | None = None,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if embed not in get_args(Embed):
            raise ValueError(f"unknown embed {embed!r}; expected one of {', '.join(get_args(Embed))}")
        self.stage_specs = stage_specs(
            depths, blocks, dim=dims, num_heads=num_heads, window_size=window_size, groups=groups, stride=stride,
            reduction=reduction, offset_kernel=offset_kernel, offset_range=offset_range, bound=bound, offsets=offsets,
            position=position, conv_mlp=conv_mlp,
        )  # fmt: skip
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.num_features = self.head_hidden_size = dims[-1]
        self.img_size: tuple[int, int] = to_2tuple(img_size)
        self.embed = embed

        conv = embed == "conv"
        kernel = (stem_kernel or 2 * patch_size - 1) if conv else patch_size
        self.stem = PatchEmbed(in_chans, stem_dim or dims[0], patch_size, kernel, bias=True)
        total = sum(depths)
        rates = iter([drop_path_rate * i / max(total - 1, 1) for i in range(total)])
        options = {
            "convention": convention, "expansion": expansion,
            "local_perception": local_perception, "attn_drop": attn_drop_rate, "proj_drop": proj_drop_rate,
        }  # fmt: skip
        height, width = (-(-side // patch_size) for side in self.img_size)
        previous = stem_dim or dims[0]
        self.stages = nn.Sequential()
        self.feature_info: list[dict[str, Any]] = []
        for i, spec in enumerate(self.stage_specs):
            downsample: nn.Module = nn.Identity()
            if i > 0:
                downsample = PatchEmbed(previous, spec.dim, 2, 3 if conv else 2, bias=False)
                height, width = -(-height // 2), -(-width // 2)
            elif previous != spec.dim:
                downsample = nn.Conv2d(previous, spec.dim, 1)
            self.stages.append(Stage(spec, downsample, (height, width), [next(rates) for _ in spec.blocks], options))
            self.feature_info.append({"num_chs": spec.dim, "reduction": patch_size * 2**i, "module": f"stages.{i}"})
            previous = spec.dim
        self.norm = LayerNorm2d(dims[-1], eps=1e-5)
        self.head = ClassifierHead(dims[-1], num_classes, pool_type=global_pool, drop_rate=drop_rate)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) images -> (B, dims[-1], H', W') normalised features of the last stage."""
        # Channels last, LayerNorm and linear layers read the map without a copy.
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        return self.norm(self.stages(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features -> (B, num_classes) logits, or (B, dims[-1]) pooled features."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) images -> (B, num_classes) logits."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature maps of the chosen stages (all by default), and the final features unless ``intermediates_only``.

        Args: as in timm; ``indices`` counts stages, ``norm`` applies the final norm to the last stage's map.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        take, last = feature_take_indices(len(self.stages), indices)
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        maps: list[Tensor] = []
        for i, stage in enumerate(self.stages):
            if stop_early and i > last:
                return maps if intermediates_only else (x, maps)
            x = stage(x)
            if i in take:
                maps.append(self.norm(x) if norm and i == len(self.stages) - 1 else x)
        return maps if intermediates_only else (self.norm(x), maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last of ``indices``, and the final norm and classifier that then have no input."""
        take, last = feature_take_indices(len(self.stages), indices)
        ends = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if prune_norm or ends:
            self.norm = nn.Identity()
        if prune_head or ends:
            self.reset_classifier(0, "")
        return take

    def stage_geometry(self) -> dict[str, tuple[int, float]]:
        """Of every stage's map, by module name: pixels between neighbours, and where the first one's centre lies.

        Patches lie side by side and their centres in the middle; overlapping kernels are centred on every n-th pixel.
        """
        strides = {info["module"]: info["reduction"] for info in self.feature_info}
        return {name: (stride, stride / 2 if self.embed == "patch" else 0.5) for name, stride in strides.items()}

    def get_classifier(self) -> nn.Module:
        """The classifier layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; 0 classes removes it."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = global_pool
        self.head.reset(num_classes, pool_type=global_pool)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters, besides norms and biases, that are not decayed: the position tables."""
        return {name for name, _ in self.named_parameters() if name.endswith("bias_table")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's description of layer groups, for layer-wise learning rate decay."""
        if coarse:
            return {"stem": r"^stem", "blocks": r"^stages\.(\d+)"}
        blocks = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^stem", "blocks": blocks}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in backward instead of storing their activations."""
        for stage in self.stages.children():
            stage.grad_checkpointing = enable  # type: ignore[assignment]


# ---- checkpoints and entry points ---------------------------------------------------------------------------------


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """What timm applies to a file before loading it: released names become ours, position tables the model's size."""
    from deformvit.models import convert

    return convert.adapt(state_dict, model)


def _create(variant: str, pretrained: bool, model_args: dict[str, Any], kwargs: dict[str, Any]) -> DAT:
    out_indices = kwargs.pop("out_indices", (0, 1, 2, 3))
    build: Callable[..., Any] = build_model_with_cfg
    return build(
        DAT, variant, pretrained,
        pretrained_filter_fn=checkpoint_filter_fn, pretrained_strict=True,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **{**model_args, **kwargs},
    )  # fmt: skip


def _cfg(**values: Any) -> dict[str, Any]:
    return {
        "input_size": (3, 224, 224), "pool_size": (7, 7), "num_classes": 1000, "fixed_input_size": False,
        "interpolation": "bicubic", "crop_pct": 0.875, "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv", "classifier": "head.fc", "license": "apache-2.0", "paper_ids": "arXiv:2201.00520",
        "paper_name": "Vision Transformer with Deformable Attention", **values,
    }  # fmt: skip


WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the weights that come with the package."""

default_cfgs = generate_default_cfgs(
    {
        # The authors' ImageNet weights of v1 are not on a public address; see docs/checkpoints.md.
        "dat_tiny.untrained": _cfg(),
        "dat_small.untrained": _cfg(),
        "dat_base.untrained": _cfg(),
        "dat_base_384.untrained": _cfg(input_size=(3, 384, 384), pool_size=(12, 12), crop_pct=384 / 438),
        "dat_nano.cifar10": _cfg(
            input_size=(3, 32, 32),
            pool_size=(2, 2),
            num_classes=10,
            crop_pct=1.0,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            file=str(WEIGHTS / "dat_nano.cifar10.safetensors"),
        ),
    }
)


@register_model
def dat_tiny(pretrained: bool = False, **kwargs: Any) -> DAT:
    """DAT-T: 28.3 M parameters, 4.6 G multiply-adds, 82.0 % top-1 (Table 2)."""
    return _create("dat_tiny", pretrained, {}, kwargs)


@register_model
def dat_small(pretrained: bool = False, **kwargs: Any) -> DAT:
    """DAT-S: 49.7 M parameters, 9.0 G multiply-adds, 83.7 % top-1 (Table 2)."""
    return _create("dat_small", pretrained, {"depths": (2, 2, 18, 2)}, kwargs)


_BASE: dict[str, Any] = {
    "depths": (2, 2, 18, 2), "dims": (128, 256, 512, 1024), "num_heads": (4, 8, 16, 32), "groups": (1, 2, 4, 8),
}  # fmt: skip


@register_model
def dat_base(pretrained: bool = False, **kwargs: Any) -> DAT:
    """DAT-B: 87.9 M parameters, 15.8 G multiply-adds, 84.0 % top-1 (Table 2)."""
    return _create("dat_base", pretrained, _BASE, kwargs)


@register_model
def dat_base_384(pretrained: bool = False, **kwargs: Any) -> DAT:
    """DAT-B fine-tuned at 384 x 384, windows of 12: 88.2 M parameters, 49.8 G multiply-adds, 84.8 % top-1 (Table 2)."""
    return _create("dat_base_384", pretrained, {**_BASE, "img_size": 384, "window_size": 12}, kwargs)


@register_model
def dat_nano(pretrained: bool = False, **kwargs: Any) -> DAT:
    """Ours, not the paper's: 2.1 M parameters, for images of 28 to 64 pixels and for CPUs.

    Patches of 2 pixels, deformable attention from stage 2 on (Table 7), the overlapping embeddings of Table 9, and
    DAT++'s local perception units and convolutional MLPs, which small data sets need.
    """
    model_args: dict[str, Any] = {
        "img_size": 32, "patch_size": 2, "depths": (1, 2, 4, 1), "dims": (32, 64, 128, 256), "num_heads": (2, 4, 4, 8),
        "blocks": ("window", "window deformable", "window deformable", "deformable"), "window_size": (8, 4, 4, 2),
        "groups": (1, 2, 2, 4), "offset_kernel": (5, 5, 3, 3), "embed": "conv", "conv_mlp": "residual",
        "local_perception": True,
    }  # fmt: skip
    return _create("dat_nano", pretrained, model_args, kwargs)
