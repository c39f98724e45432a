"""One image through a model, with everything that is shown of it afterwards: its result and its attention layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from deformvit.inference import ImageSource, Predictor, shrunk, to_image
from deformvit.models import trace
from deformvit.models.trace import Trace
from deformvit.results import Result


@dataclass(frozen=True)
class Look:
    """What a model made of an image."""

    view: Tensor
    """(3, H, W) from 0 to 1, what the network was given before normalisation."""
    picture: Image.Image
    """The same as sharp as the image is."""
    overlay: Image.Image
    """``picture`` with boxes, masks or labels on it; itself where there are none."""
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
    image = to_image(source)
    view, picture = predictor.view(image, size), predictor.picture(image, size)
    with trace.scale_offsets(predictor.model, scale), trace.record(predictor.model) as recorded:
        result = predictor.predict_view(image, size, top=top, threshold=threshold)
    drawn = picture if result is None or predictor.task == "classification" else shrunk(result.overlay())
    return Look(view, picture, drawn, result, recorded)
