"""How long a run trains where its configuration leaves that open: by the number of its images."""

from __future__ import annotations

import math
from dataclasses import dataclass

from deformvit import distributed
from deformvit.config import BaseConfig, ClassificationConfig


@dataclass(frozen=True)
class Length:
    """A run sees about so many images in all, in at least and at most so many epochs."""

    images: int
    fewest: int
    most: int


CLASSIFIER = Length(60_000, 5, 30)
"""Measured in docs/results.md, fine-tuning."""
SYSTEM = Length(5_000, 8, 60)
"""Of detectors and segmentation networks: about as long as the measured recipes of dat_nano."""
FROM_SCRATCH = 5
"""A classifier without weights to start from takes this times as many epochs."""


def fill_in_length(config: BaseConfig, images: int) -> None:
    """Set the number of epochs where it is 0, that is left open; few images are seen often, many seldom.

    A batch that would hold more than all images is made smaller. Detectors and segmentation networks, whose evaluation
    takes long, are evaluated about eight times.

    Args:
        config: of the run; changed in place.
        images: number of training images.
    """
    run = config.run
    if run.epochs > 0:
        return
    share = distributed.size() * run.accumulate
    config.data.batch_size = max(min(config.data.batch_size, images // share * share), share)
    classifier = isinstance(config, ClassificationConfig)
    length = CLASSIFIER if classifier else SYSTEM
    run.epochs = min(max(math.ceil(length.images / max(images, 1)), length.fewest), length.most)
    if classifier and not config.model.checkpoint:
        run.epochs *= FROM_SCRATCH
    if not classifier and run.eval_every == 1:
        run.eval_every = max(run.epochs // 8, 1)
