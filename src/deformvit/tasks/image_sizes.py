"""Sizes of a detection or segmentation run where its configuration leaves them open: from its images."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from deformvit.config import DetectionConfig, SegmentationConfig
from deformvit.models.descriptions import Description, DetectorDescription, SegmenterDescription

SHORTER, LONGER = 800, 1333
"""Detection: images are never resized to more, as published."""
SEGMENTED = 512
"""Segmentation: the shorter side is never resized to more, as published for ADE20K."""
LEAST = 128
"""Shorter sides are enlarged to this, so that the coarsest map of a backbone (stride 32) has four cells."""
MOST_TIMES = 2.0
"""Images are enlarged at most by this: more adds computation and no detail."""
SMALL = 32
"""Objects of this side have what the finest level of a pyramid is made for; COCO calls what is below small."""

Size = tuple[int, int]


def fill_in_detection(
    config: DetectionConfig, sizes: Sequence[Size], sides: Sequence[float], described: Description | None
) -> None:
    """Set the sizes of a detector's images where they are 0 or empty; what is given stays.

    They are those of a detector that the run starts from. Otherwise images keep the median of their sizes, but are
    enlarged until the median object has a side of 32 pixels, at most twice, and up to 800 and 1333 pixels.

    Args:
        config: of the run; changed in place.
        sizes: height and width of training images; without any, the published sizes are taken.
        sides: of objects: square roots of the areas of their boxes, in pixels.
        described: what the weights say of themselves that the run starts from.
    """
    data, sizes = config.data, sizes or [(SHORTER, LONGER)]
    if isinstance(described, DetectorDescription):
        data.eval_size, data.max_size = data.eval_size or described.eval_size, data.max_size or described.max_size
    if not data.eval_size:
        shorter = median(min(size) for size in sizes)
        wanted = max(SMALL / max(median(sides), 1) if sides else 1.0, LEAST / shorter, 1.0)
        data.eval_size = min(round(shorter * min(wanted, MOST_TIMES)), SHORTER)
        if data.max_size:  # of which images have a usual part
            ratio = median(min(size) / max(size) for size in sizes)
            data.eval_size = min(data.eval_size, round(data.max_size * ratio))
    most = max(min(round(1.2 * data.eval_size), data.max_size or SHORTER), data.eval_size)
    data.min_size = data.min_size or tuple(sorted({max(round(0.8 * data.eval_size), 1), data.eval_size, most}))
    data.max_size = data.max_size or max(min(2 * max(data.min_size), LONGER), max(data.min_size))


def fill_in_segmentation(config: SegmentationConfig, sizes: Sequence[Size], described: Description | None) -> None:
    """Set the scale and the crop of a segmentation network's images where they are 0; what is given stays.

    The scale is that of a segmentation network that the run starts from; otherwise images keep the median of their
    sizes, at least 128 (enlarged at most twice) and at most the crop, 512 if it is open, for the shorter side.

    Args:
        config, sizes, described: as of :func:`fill_in_detection`.
    """
    data = config.data
    if not any(data.scale) and isinstance(described, SegmenterDescription):
        data.scale = described.scale
    if not any(data.scale):
        shorter = median(min(size) for size in sizes or [(SEGMENTED, SEGMENTED)])
        side = round(min(max(shorter, min(LEAST, MOST_TIMES * shorter)), data.crop_size or SEGMENTED))
        data.scale = (side, 4 * side)  # as published: 512 and 2048
    data.crop_size = data.crop_size or min(data.scale)
