"""Vision Transformer with Deformable Attention (DAT) and its successor DAT++: one family, by configuration.

Papers: Zhuofan Xia, Xuran Pan, Shiji Song, Li Erran Li, Gao Huang: "Vision Transformer with Deformable Attention",
CVPR 2022, https://arxiv.org/abs/2201.00520, and "DAT++: Spatially Dynamic Vision Transformer with Deformable
Attention", https://arxiv.org/abs/2309.01430. Original code: https://github.com/LeapLabTHU/DAT (Apache-2.0). This is an
independent implementation that loads the released checkpoints exactly (deformvit.models.released.weights).

The blocks of a stage are in deformvit.models.blocks, the registered models in deformvit.models.dat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from timm.layers import ClassifierHead, LayerNorm2d, to_2tuple
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from deformvit.layers import (
    ConvStem,
    DeformableAttention,
    DeformablePatchEmbed,
    PatchEmbed,
    PatchMerging,
    WindowAttention,
)
from deformvit.layers.common import ConvMlp, check_choice
from deformvit.layers.deformable import Bound, OffsetPadding, Position, Sampling
from deformvit.layers.neighborhood import SmallMap
from deformvit.models.blocks import BlockArgs, Shifting, Stage, stage_specs
from deformvit.ops.grid import Convention

Embed = Literal["patch", "conv", "stacked", "deformable"]
Downsample = Literal["patch", "conv", "merging", "deformable"]
T = TypeVar("T")
PerStage: TypeAlias = T | Sequence[T]
"""One value for all stages, or one for each."""


def _stem(embed: Embed, in_chans: int, dim: int, stride: int, kernel: int | None) -> nn.Module:
    """The patch embedding: (B, in_chans, H, W) -> (B, dim, H / stride, W / stride)."""
    if embed == "stacked":
        return ConvStem(in_chans, dim, stride)
    if embed == "deformable":
        return DeformablePatchEmbed(in_chans, dim, stride)
    kernel_size = (kernel or 2 * stride - 1) if embed == "conv" else stride
    return PatchEmbed(in_chans, dim, stride, kernel_size, bias=True)


def _downsample(kind: Downsample, in_chans: int, dim: int, dense: bool) -> nn.Module:
    """The layer between two stages: it halves the map, or with ``dense`` keeps its size."""
    if kind in ("patch", "conv"):
        return PatchEmbed(in_chans, dim, 2, 3 if kind == "conv" else 2, bias=False, dense=dense)
    if dense:
        raise ValueError(f"output_stride below 32 needs downsample 'patch' or 'conv', got {kind!r}")
    return PatchMerging(in_chans, dim) if kind == "merging" else DeformablePatchEmbed(in_chans, dim, 2)


def _strides(patch_size: int, stages: int, output_stride: int | None) -> list[int]:
    """Pixels of the image for one of each stage's map, at most ``output_stride``."""
    strides = [patch_size * 2**i for i in range(stages)]
    if output_stride is None:
        return strides
    if output_stride not in strides[1:]:
        raise ValueError(f"output_stride must be one of {strides[1:]}, got {output_stride}")
    return [min(stride, output_stride) for stride in strides]


def _map_sizes(img_size: tuple[int, int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """(H, W) of every stage's map; every downsampling rounds up."""
    height, width = (-(-side // strides[0]) for side in img_size)
    sizes = []
    for previous, stride in zip((strides[0], *strides), strides, strict=False):
        height, width = (-(-side // (stride // previous)) for side in (height, width))
        sizes.append((height, width))
    return sizes


class DAT(nn.Module):
    """Deformable Attention Transformer: a pyramid of four stages with strides 4, 8, 16, 32 (section 3.3, Table 1).

    Arguments marked (*) take one value for all stages or one for each. Any input size works in forward; ``img_size`` is
    the nominal size that position tables are learned for.

    Args:
        img_size: nominal height and width of images.
        in_chans: image channels.
        num_classes: classes; 0 for no classifier.
        global_pool: timm's name of the pooling before the classifier; "" for none.
        output_stride: stride of the last stage's map: 32, or 16 or 8 for dense prediction, where the last downsampling
            convolutions have stride 1 and the same weights (these values are for ``patch_size=4``).
        patch_size: stride of the patch embedding, and of the first stage's map.
        depths: blocks of each stage.
        dims: channels of each stage.
        num_heads: attention heads of each stage.
        blocks: pattern of block names for each stage, see :func:`~deformvit.models.blocks.stage_specs`: "window",
            "shifted", "neighborhood", "deformable", "reduction" (PVT), "deformable_detr" (Table 8), "conv" (depthwise).
        window_size: (*) side of attention windows; kernel size of "conv" blocks.
        neighborhood_size: (*) side of neighbourhoods.
        groups: (*) offset groups G.
        stride: (*) r, queries per deformed key along an axis.
        reduction: (*) factor by which "reduction" blocks reduce keys along an axis (PVT's: 8, 4, 2, 1).
        points: (*) sampled points of each query in "deformable_detr" blocks.
        offset_kernel: (*) kernel size of the offset network.
        offset_padding: (*) its padding, see :class:`~deformvit.layers.DeformedPoints`.
        offset_range: (*) s; 0 turns offsets off (Fig. 4).
        bound: (*) how positions are bounded, see :class:`~deformvit.layers.DeformedPoints`.
        offsets: (*) False for attention to the undeformed grid (Table 6).
        sampling: (*) "bilinear", or "pooled" for averaged keys (released DAT++ with offsets off).
        position: (*) position bias of deformable blocks: "relative", "log_cpb", "fixed", "dwconv" or "none" (Table 6).
        convention: coordinates of deformable blocks, see :mod:`deformvit.ops.grid`.
        shifting: shift of "shifted" blocks: "dat" for half a window rounded up, "swin" for half a window rounded down
            and none where one window covers the map.
        small_map: attention of "neighborhood" blocks on maps smaller than a neighbourhood, see
            :class:`~deformvit.NeighborhoodAttention`.
        embed: patch embedding: "patch" for patches that do not overlap; "conv" for a convolution with kernel size
            2 * stride - 1, the released 7 x 7 stride 4 and 3 x 3 stride 2 (Table 9); "stacked" for two 3 x 3
            convolutions (DAT++); "deformable" for patches of predicted position and size (DPT).
        downsample: between stages: "patch", "conv", "merging" (Swin's) or "deformable"; by default as ``embed``, and
            "conv" for "stacked".
        stem_kernel: kernel size of ``embed="conv"``, if not 2 * stride - 1.
        conv_mlp: (*) the depthwise 3 x 3 convolution inside every MLP: "none", "plain" (v1) or "residual" (DAT++).
        local_perception: (*) a depthwise 3 x 3 convolution before every block (DAT++).
        layer_scale: (*) initial value of each branch's layer scale; None for no layer scale.
        expansion: hidden channels of MLPs as a multiple of their channels.
        stem_dim: channels of the patch embedding, if not ``dims[0]``; a 1 x 1 convolution then projects to ``dims[0]``.
        output_norms: a LayerNorm for every stage's map, for detection and segmentation (section 3.3).
            :meth:`forward_intermediates` and ``features_only`` then return normalised maps, and there is no final norm.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout after the output projections of attention layers and after both layers of MLPs.
        attn_drop_rate: dropout of attention weights.
        drop_path_rate: stochastic depth of the last block; rates rise linearly from 0 at the first.

    Raises:
        ValueError: arguments of another length than ``depths``, unknown choices, or values that contradict one another.
    """

    pretrained_cfg: dict[str, Any]
    """Set by timm's factory: how images are prepared, and where weights come from."""
    model_args: dict[str, Any]
    """Set by timm's factory: the arguments given to it."""

    def __init__(
        self,
        *,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        output_stride: int | None = None,
        patch_size: int = 4,
        depths: Sequence[int] = (2, 2, 6, 2),
        dims: Sequence[int] = (96, 192, 384, 768),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        blocks: Sequence[str | Sequence[str]] = ("window shifted",) * 2 + ("window deformable",) * 2,
        window_size: PerStage[int] = 7,
        neighborhood_size: PerStage[int] = 7,
        groups: PerStage[int] = (1, 2, 3, 6),
        stride: PerStage[int] = 1,
        reduction: PerStage[int] = (8, 4, 2, 1),
        points: PerStage[int] = 16,
        offset_kernel: PerStage[int] = (9, 7, 5, 3),
        offset_padding: PerStage[OffsetPadding] = "same",
        offset_range: PerStage[float] = 2.0,
        bound: PerStage[Bound] = "range",
        offsets: PerStage[bool] = True,
        sampling: PerStage[Sampling] = "bilinear",
        position: PerStage[Position] = "relative",
        convention: Convention = "v1",
        shifting: Shifting = "dat",
        small_map: SmallMap = "whole",
        embed: Embed = "patch",
        downsample: Downsample | None = None,
        stem_kernel: int | None = None,
        conv_mlp: PerStage[ConvMlp] = "none",
        local_perception: PerStage[bool] = False,
        layer_scale: PerStage[float | None] = None,
        expansion: float = 4.0,
        stem_dim: int | None = None,
        output_norms: bool = False,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.arguments: dict[str, Any] = arguments
        """As given here, defaults included."""
        check_choice("embed", embed, Embed)
        check_choice("shifting", shifting, Shifting)
        if downsample is None:
            downsample = embed if embed in ("patch", "deformable") else "conv"
        check_choice("downsample", downsample, Downsample)
        self.stage_specs = stage_specs(
            depths, blocks, dim=dims, num_heads=num_heads, window_size=window_size,
            neighborhood_size=neighborhood_size, groups=groups, stride=stride, reduction=reduction, points=points,
            offset_kernel=offset_kernel, offset_padding=offset_padding, offset_range=offset_range, bound=bound,
            offsets=offsets, sampling=sampling, position=position, conv_mlp=conv_mlp,
            local_perception=local_perception, layer_scale=layer_scale,
        )  # fmt: skip
        block_args = BlockArgs(convention, shifting, small_map, expansion, attn_drop_rate, proj_drop_rate)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.num_features = self.head_hidden_size = dims[-1]
        self.img_size: tuple[int, int] = to_2tuple(img_size)
        self.patch_size = patch_size
        self.embed = embed
        self.downsample: Downsample = downsample
        self.strides = _strides(patch_size, len(depths), output_stride)

        self.stem = _stem(embed, in_chans, stem_dim or dims[0], patch_size, stem_kernel)
        depth = sum(depths)
        drop_path_rates = iter([drop_path_rate * i / max(depth - 1, 1) for i in range(depth)])
        table_sizes = self._table_sizes()
        in_dim = stem_dim or dims[0]
        self.stages = nn.Sequential()
        self.feature_info: list[dict[str, Any]] = []
        for i, spec in enumerate(self.stage_specs):
            layer: nn.Module = nn.Identity()
            if i > 0:
                layer = _downsample(downsample, in_dim, spec.dim, dense=self.strides[i] == self.strides[i - 1])
            elif in_dim != spec.dim:
                layer = nn.Conv2d(in_dim, spec.dim, 1)
            rates = [next(drop_path_rates) for _ in spec.blocks]
            self.stages.append(Stage(spec, block_args, layer, table_sizes[i], rates))
            self.feature_info.append({"num_chs": spec.dim, "reduction": self.strides[i], "module": f"stages.{i}"})
            in_dim = spec.dim
        self.output_norms = nn.ModuleList(LayerNorm2d(dim, eps=1e-5) for dim in dims) if output_norms else None
        self.norm: nn.Module = nn.Identity() if output_norms else LayerNorm2d(dims[-1], eps=1e-5)
        self.head = ClassifierHead(dims[-1], num_classes, pool_type=global_pool, drop_rate=drop_rate)

    def map_sizes(self, img_size: tuple[int, int]) -> list[tuple[int, int]]:
        """(H, W) of every stage's map for images of that height and width."""
        return _map_sizes(img_size, self.strides)

    def _table_sizes(self) -> list[tuple[int, int]]:
        """Map sizes that position tables are learned for, the same at every ``output_stride``, so that weights fit."""
        return _map_sizes(self.img_size, _strides(self.patch_size, len(self.strides), None))

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, window_size: PerStage[int] | None = None
    ) -> None:
        """Change the nominal image size; position tables are interpolated bicubically.

        Not needed to run at another size. The authors do this before fine-tuning at 384 (DAT-B, windows of 12).

        Args:
            img_size: new nominal height and width; unchanged by default.
            window_size: new side of attention windows, for all stages or one for each; unchanged by default.

        Raises:
            ValueError: a size below 1, or another number of window sizes than stages.
        """
        size = self.img_size if img_size is None else to_2tuple(img_size)
        if min(size) < 1:
            raise ValueError(f"img_size must be positive, got {size}")
        windows = [window_size] * len(self.stages) if isinstance(window_size, int | None) else list(window_size)
        if len(windows) != len(self.stages):
            raise ValueError(f"window_size must have one value for each of {len(self.stages)} stages, got {windows}")
        self.img_size = size
        # Pruned models have fewer stages than table sizes.
        for stage, table_size, window in zip(self.stages, self._table_sizes(), windows, strict=False):
            for module in stage.modules():
                if isinstance(module, DeformableAttention):
                    module.set_table_size(table_size)
                elif isinstance(module, WindowAttention) and window is not None:
                    module.set_window_size(window)
        if img_size is not None and isinstance(getattr(self, "pretrained_cfg", None), dict):  # of timm's factory
            self.pretrained_cfg |= {"input_size": (self.in_chans, *self.img_size), "pool_size": None}
        changed = {"img_size": self.img_size if img_size is not None else None, "window_size": window_size}
        self.model_args = {**getattr(self, "model_args", {}), **{k: v for k, v in changed.items() if v is not None}}

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) images -> (B, dims[-1], H', W') normalised features of the last stage."""
        # In channels-last memory format, LayerNorm and linear layers read the map without a copy.
        x = self.stages(self.stem(x.contiguous(memory_format=torch.channels_last)))
        return self.norm(x) if self.output_norms is None else self.output_norms[-1](x)

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
        """Feature maps of chosen stages, and the final features unless ``intermediates_only``.

        Args:
            x: (B, in_chans, H, W) images.
            indices: stages counted from 0, or the number of last stages; all by default.
            norm: apply the final norm to the last stage's map. With ``output_norms`` every map has its own norm.
            stop_early: compute no stage after the last chosen one.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: return the list of maps alone.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NHWC', got {output_fmt!r}")
        take, last = feature_take_indices(len(self.stages), indices)
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        maps: list[Tensor] = []
        for i, stage in enumerate(self.stages):
            if stop_early and i > last:
                return maps if intermediates_only else (x, maps)
            x = stage(x)
            if i in take:
                features = x
                if self.output_norms is not None:
                    features = self.output_norms[i](x)
                elif norm and i == len(self.stages) - 1:
                    features = self.norm(x)
                maps.append(features.permute(0, 2, 3, 1) if output_fmt == "NHWC" else features)
        if intermediates_only:
            return maps
        return (self.norm(x) if self.output_norms is None else self.output_norms[-1](x)), maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages after the last of ``indices``, with the final norm and classifier; returns the indices."""
        take, last = feature_take_indices(len(self.stages), indices)
        pruned = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if self.output_norms is not None:
            for i in range(len(self.output_norms)):
                if i not in take:
                    self.output_norms[i] = nn.Identity()
        if prune_norm or pruned:
            self.norm = nn.Identity()
        if prune_head or pruned:
            self.reset_classifier(0, "")
        return take

    def stage_geometry(self) -> dict[str, tuple[int, float]]:
        """Stride and centre of the first pixel of every stage's map, in image pixels on either axis, by module name.

        The centre of a patch is its middle; overlapping kernels are centred on every n-th pixel.
        """
        origin = self.patch_size / 2 if self.embed in ("patch", "deformable") else 0.5
        geometry = {}
        for i, stride in enumerate(self.strides):
            if i > 0 and self.downsample != "conv":  # an even kernel, centred between two pixels
                origin += self.strides[i - 1] / 2
            geometry[f"stages.{i}"] = (stride, origin)
        return geometry

    def get_classifier(self) -> nn.Module:
        """The classifier layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one, or remove it (0 classes)."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = global_pool
        self.head.reset(num_classes, pool_type=global_pool)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters, besides norms and biases, that are not decayed: position tables and layer scales."""
        return {name for name, _ in self.named_parameters() if name.endswith(("bias_table", ".gamma"))}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of layer groups in timm's format, for layer-wise learning rate decay."""
        if coarse:
            return {"stem": r"^stem", "blocks": r"^stages\.(\d+)"}
        blocks = [
            (r"^stages\.(\d+)\.downsample", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^(?:norm|output_norms)", (99999,)),
        ]
        return {"stem": r"^stem", "blocks": blocks}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in backward instead of storing their activations."""
        for stage in self.stages.children():
            stage.grad_checkpointing = enable  # type: ignore[assignment]
