"""The size that an image is resized to: one rule for training, evaluation and prediction."""

from __future__ import annotations

from collections.abc import Sequence


def fit(size: Sequence[int], scale: tuple[int, int], factor: float = 1.0) -> tuple[int, int]:
    """Height and width of an image resized to fit into ``factor`` times ``scale``, its aspect kept.

    Args:
        size: height and width in pixels.
        scale: lengths that the shorter and the longer side may have, in pixels; one of the two is reached.
        factor: multiple of the scale.
    """
    height, width = size
    shorter, longer = int(min(scale) * factor), int(max(scale) * factor)
    ratio = min(shorter / min(height, width), longer / max(height, width))
    return max(int(height * ratio + 0.5), 1), max(int(width * ratio + 0.5), 1)
