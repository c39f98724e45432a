"""What detectors and segmentation networks compute for an image, as the papers' counters take it (Tables 3 to 5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deformvit.systems.cascade import CascadeRoIHeads
from deformvit.systems.detector import Detector
from deformvit.systems.segmenter import Segmenter

REGIONS, OBJECTS = 1000, 100
"""Regions that box heads and mask heads are counted with."""


class Cost(nn.Module):
    """A system whose forward pass is all of its layers on one image, without selecting anything: it can be counted.

    Args:
        system: a detector or a segmentation network; its auxiliary head is counted too, as it is in the papers.
    """

    def __init__(self, system: Detector | Segmenter) -> None:
        super().__init__()
        self.system = system

    def forward(self, images: Tensor) -> list[Tensor]:
        """(1, 3, H, W) images -> what the heads give."""
        system = self.system
        if isinstance(system, Segmenter):
            maps = system.backbone(images)
            return [head(maps) for head in (system.head, system.auxiliary) if head is not None]
        network = system.network
        levels = list(network.backbone(images).values())  # type: ignore[operator]
        if system.config.system == "retinanet":
            return list(network.head(levels).values())  # type: ignore[operator]
        outputs = [*network.rpn.head(levels)[0]]  # type: ignore[union-attr, operator]
        channels = system.config.channels
        regions = torch.zeros(REGIONS, channels, 7, 7, device=images.device)
        objects = torch.zeros(OBJECTS, channels, 14, 14, device=images.device)
        heads = network.roi_heads
        if isinstance(heads, CascadeRoIHeads):
            for stage in heads.stages:
                outputs += [*stage(regions), stage.masks(objects)]  # type: ignore[operator]
            return outputs
        box = heads.box_predictor(heads.box_head(regions))  # type: ignore[union-attr, operator]
        return [*outputs, *box, heads.mask_predictor(heads.mask_head(objects))]  # type: ignore[union-attr, operator]
