"""The size to which detectors and segmenters resize an image, in training, evaluation and prediction.

Classifiers see squares of one size instead: :func:`deformvit.data.eval_transform`.
"""

from __future__ import annotations

from collections.abc import Sequence

OWN = (0, 0)
"""In place of a scale: images keep their own size, unless it exceeds LARGEST."""
LARGEST = (1024, 2048)


def fit(size: Sequence[int], scale: tuple[int, int], factor: float = 1.0) -> tuple[int, int]:
    """Height and width of an image resized to fit into ``factor`` times ``scale``, keeping its aspect ratio.

    Args:
        size: height and width in pixels.
        scale: greatest lengths of the shorter and the longer side in pixels, in either order; one of them is reached.
            Or :data:`OWN`.
        factor: multiple of the scale.
    """
    height, width = size
    if tuple(scale) == OWN:
        own = (min(size), max(size))
        scale = own if own[0] <= LARGEST[0] and own[1] <= LARGEST[1] else LARGEST
    shorter, longer = int(min(scale) * factor), int(max(scale) * factor)
    ratio = min(shorter / min(height, width), longer / max(height, width))
    return max(int(height * ratio + 0.5), 1), max(int(width * ratio + 0.5), 1)
