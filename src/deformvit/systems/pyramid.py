"""Parts that detectors share: the feature pyramid on a backbone, its anchors, and the pooling of regions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.poolers import initLevelMapper

from deformvit.systems.backbone import Backbone

RATIOS = (0.5, 1.0, 2.0)
"""Height / width of the anchors."""


class Pyramid(nn.Module):
    """A backbone and torchvision's feature pyramid on it: what torchvision's detectors call a backbone.

    Args:
        backbone: computes the feature maps.
        channels: channels of every level.
        extra: coarser levels: "pool", one by subsampling (Mask R-CNN), or "convolutions", two by strided convolutions
            of the backbone's last map (RetinaNet).
    """

    def __init__(self, backbone: Backbone, channels: int, extra: Literal["pool", "convolutions"]) -> None:
        super().__init__()
        last = backbone.channels[-1]
        block: ExtraFPNBlock = LastLevelMaxPool() if extra == "pool" else LastLevelP6P7(last, channels)
        self.body = backbone
        self.fpn = FeaturePyramidNetwork(backbone.channels, channels, block)
        if extra == "convolutions":
            block.use_P5 = False  # start from the backbone's map even if it has as many channels as a level
        self.out_channels = channels
        self.strides = list(backbone.strides)
        for _ in range(1 if extra == "pool" else 2):
            self.strides.append(2 * self.strides[-1])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> levels by name, finest first: "0", "1", ..., then torchvision's names of the extra levels."""
        return self.fpn({str(i): features for i, features in enumerate(self.body(images))})


class Anchors(AnchorGenerator):
    """torchvision's anchors at the true strides of the levels.

    torchvision divides the image's size by the map's, which is wrong for images whose sides are not multiples of the
    stride; images are not padded here.

    Args:
        strides: strides of the levels in pixels.
        scale: side of an anchor in cells of its level.
        octaves: number of anchor sizes on each level, spaced evenly over an octave.
    """

    def __init__(self, strides: Sequence[int], scale: float, octaves: int = 1) -> None:
        sizes = tuple(tuple(stride * scale * 2 ** (i / octaves) for i in range(octaves)) for stride in strides)
        super().__init__(sizes, (RATIOS,) * len(strides))
        self.level_strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Anchors of all levels, (N, 4), for every image; all images have one size."""
        first = feature_maps[0]
        self.set_cell_anchors(torch.float32, first.device)
        strides = [[torch.tensor(stride, device=first.device)] * 2 for stride in self.level_strides]
        grids = [list(features.shape[-2:]) for features in feature_maps]
        anchors = torch.cat(self.grid_anchors(grids, strides))
        return [anchors] * len(image_list.image_sizes)


def roi_pool(strides: Sequence[int], size: int) -> MultiScaleRoIAlign:
    """torchvision's RoIAlign over all levels but the extra ones.

    The scales are set; torchvision estimates them from the shapes of the first image and errs for small images.

    Args:
        strides: strides of the levels in pixels.
        size: side of the pooled map.
    """
    pool = MultiScaleRoIAlign([str(i) for i in range(len(strides))], size, sampling_ratio=2)
    levels = [stride.bit_length() - 1 for stride in strides]
    pool.scales = [1 / stride for stride in strides]
    # A box of 224 pixels belongs to the level of stride 16 (https://arxiv.org/abs/1612.03144, equation 1).
    pool.map_levels = initLevelMapper(levels[0], levels[-1], canonical_scale=224, canonical_level=4)
    return pool
