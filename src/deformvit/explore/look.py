"""One image through a model, with everything that is shown of it afterwards: its result and its attention layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as images_v2

from deformvit.inference import ImageSource, Predictor, to_image
from deformvit.models import trace
from deformvit.models.trace import Trace
from deformvit.results import Result

DISPLAY = 672
"""Pixels of the shorter side that a picture on the page has, where the image has as many."""


@dataclass(frozen=True)
class Look:
    """What a model made of an image."""

    view: Tensor
    """(3, H, W) from 0 to 1, what the network was given before normalisation."""
    overlay: Tensor
    """(3, H, W) the same with boxes, masks or labels on it; ``view`` itself where there are none."""
    result: Result | None
    """None for a model without classes."""
    trace: Trace

    @property
    def hw(self) -> tuple[int, int]:
        """(H, W) of what the network saw, in whose pixels points are given."""
        return self.view.shape[-2], self.view.shape[-1]

    @property
    def headline(self) -> str:
        """The most important of the result in a few words, or nothing."""
        return self.result.headline() if self.result else ""


def look(
    predictor: Predictor[Any],
    source: ImageSource,
    *,
    threshold: float = 0.5,
    scale: float = 1.0,
    size: Sequence[int] | None = None,
    top: int = 5,
) -> Look:
    """Pass an image through a model and keep what is worth showing.

    Args:
        predictor: of :func:`deformvit.load`.
        source: the image.
        threshold: detectors: score from which objects count.
        scale: of the offsets, see :func:`deformvit.models.trace.scale_offsets`.
        size: classifiers and backbones: (H, W) that the whole image is resized to; by default they see what they are
            evaluated on.
        top: classes to name.

    Raises:
        UserError: an image that cannot be read, or a size that the model cannot be given.
    """
    view = predictor.view(to_image(source), size)
    with trace.scale_offsets(predictor.model, scale), trace.record(predictor.model) as recorded:
        result = predictor.predict_view(view, top=top, threshold=threshold)
    if result is None:
        return Look(view, view, None, recorded)
    drawn = result.overlay()
    overlay = view if drawn is result.image else images_v2.to_dtype(images_v2.pil_to_tensor(drawn), scale=True)
    return Look(view, overlay, result, recorded)


def to_picture(image: Tensor) -> Image.Image:
    """(3, H, W) from 0 to 1 -> RGB."""
    return to_image(image.clamp(0, 1))
