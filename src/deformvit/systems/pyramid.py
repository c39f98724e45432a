"""What detectors share: the feature pyramid on a backbone, its anchors, pooling of regions."""

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


class Pyramid(nn.Module):
    """Backbone and torchvision's feature pyramid; what torchvision's detectors call a backbone.

    Args:
        backbone: gives the maps.
        channels: of every level.
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
            block.use_P5 = False  # of the map, even where it has as many channels as a level
        self.out_channels = channels
        self.strides = list(backbone.strides)
        for _ in range(1 if extra == "pool" else 2):
            self.strides.append(2 * self.strides[-1])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) images -> the levels, finest first, under the names "0", "1" ... and those of extra levels."""
        return self.fpn({str(i): features for i, features in enumerate(self.body(images))})


class Anchors(AnchorGenerator):
    """torchvision's anchors at the strides that levels really have.

    torchvision divides the image by the map, which is wrong for images that are no multiple of the stride; and images
    here are not padded to one.

    Args:
        strides: of the levels.
        scale: side of an anchor in cells.
        octaves: anchor sizes for each level, dividing an octave evenly.
    """

    def __init__(self, strides: Sequence[int], scale: float, octaves: int = 1) -> None:
        sizes = tuple(tuple(stride * scale * 2 ** (i / octaves) for i in range(octaves)) for stride in strides)
        super().__init__(sizes, (RATIOS,) * len(strides))
        self.level_strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """(anchors of all levels, 4) for every image; all images have one size."""
        first = feature_maps[0]
        self.set_cell_anchors(torch.float32, first.device)
        strides = [[torch.tensor(stride, device=first.device)] * 2 for stride in self.level_strides]
        grids = [list(features.shape[-2:]) for features in feature_maps]
        anchors = torch.cat(self.grid_anchors(grids, strides))
        return [anchors] * len(image_list.image_sizes)


def roi_pool(strides: Sequence[int], size: int) -> MultiScaleRoIAlign:
    """torchvision's pooling of regions from all but the extra levels.

    Scales are set rather than guessed from the first image's shapes, which goes wrong for small images.
    """
    pool = MultiScaleRoIAlign([str(i) for i in range(len(strides))], size, sampling_ratio=2)
    levels = [stride.bit_length() - 1 for stride in strides]
    pool.scales = [1 / stride for stride in strides]
    # A box of 224 pixels belongs to the level of stride 16 in a pyramid of strides 4 to 32 (FPN, equation 1).
    pool.map_levels = initLevelMapper(levels[0], levels[-1], canonical_scale=224, canonical_level=4)
    return pool
