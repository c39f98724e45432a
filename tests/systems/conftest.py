"""Small systems and an image with its target, shared by the tests."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deformvit.config import DetectionConfig, DetectorConfig, SegmentationConfig, SegmenterConfig
from deformvit.systems import Detector, Segmenter, build_detector, build_segmenter

TINY: dict[str, Any] = {"dims": (16, 16, 32, 32), "num_heads": (1, 1, 2, 2), "groups": 1, "depths": (1, 2, 2, 1)}
"""Arguments that make dat_nano smaller."""


@pytest.fixture
def make_detector():
    def make(system: str, classes: int = 2, name: str = "dat_nano", eval_size: int = 64, **head: Any) -> Detector:
        config = DetectionConfig()
        config.model.name = name
        config.head = DetectorConfig(
            system=system, **{"channels": 32, "box_channels": 64, "rois": 64, "rpn_rois": 64, "proposals": 64,
            "anchor_scale": 4.0, "stages": (2, 3, 4), **head},
        )  # fmt: skip
        config.data.eval_size = eval_size
        return build_detector(config, classes, TINY if name == "dat_nano" else None)

    return make


@pytest.fixture
def make_segmenter():
    def make(system: str, classes: int = 3, name: str = "dat_nano", **head: Any) -> Segmenter:
        config = SegmentationConfig()
        config.model.name = name
        config.head = SegmenterConfig(system=system, **{"channels": 32, **head})
        config.data.scale = (48, 96)
        return build_segmenter(config, classes, TINY if name == "dat_nano" else None)

    return make


@pytest.fixture
def sample():
    """An image of 96 x 144 with three rectangles, and what a detector should find."""
    image = torch.rand(3, 96, 144) * 0.2
    boxes = torch.tensor([[12.0, 15, 45, 60], [60, 30, 120, 54], [90, 62, 126, 90]])
    labels = torch.tensor([0, 1, 0])
    masks = torch.zeros(3, 96, 144, dtype=torch.uint8)
    for (left, top, right, bottom), label, mask in zip(boxes.int().tolist(), labels, masks, strict=True):
        image[int(label), top:bottom, left:right] += 0.7
        mask[top:bottom, left:right] = 1
    return image, {"boxes": boxes, "labels": labels, "masks": masks}
