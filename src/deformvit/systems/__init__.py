"""Detection and segmentation networks on any backbone: the paper's sections 4.2 and 4.3."""

from deformvit.systems.backbone import Backbone
from deformvit.systems.build import (
    build_detector,
    build_segmenter,
    describe_detector,
    describe_segmenter,
    taken_weights,
)
from deformvit.systems.detector import Detector
from deformvit.systems.segmenter import Segmenter

__all__ = [
    "Backbone",
    "Detector",
    "Segmenter",
    "build_detector",
    "build_segmenter",
    "describe_detector",
    "describe_segmenter",
    "taken_weights",
]
