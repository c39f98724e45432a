"""Shared by the figures: colours, the image under the marks, margins, checks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from deformvit.errors import UserError
from deformvit.models.trace import LayerRecord

COLOURS = ("#ff4d6d", "#4cc9f0", "#ffd166", "#80ed99", "#c77dff", "#ff9f1c")


def picture(image: Tensor) -> np.ndarray:
    """(3, H, W) from 0 to 1 -> (H, W, 3) for Matplotlib."""
    return image.permute(1, 2, 0).clamp(0, 1).float().cpu().numpy()


def panel_height(image_hw: tuple[int, int], width: float) -> float:
    """Inches of a panel of that width; very long images are not drawn at full length."""
    return width * min(max(image_hw[0] / image_hw[1], 0.4), 2.5)


def show(axis: Axes, image: np.ndarray, margin: float = 0.0, alpha: float = 1.0) -> None:
    """The image in pixels, (0, 0) at its top left corner, with a margin in sides of the image."""
    height, width = image.shape[:2]
    axis.set_axis_off()
    axis.imshow(image, extent=(0, width, height, 0), interpolation="nearest", alpha=alpha)
    axis.set_xlim(-margin * width, (1 + margin) * width)
    axis.set_ylim((1 + margin) * height, -margin * height)


def margin_for(points: Sequence[Tensor], image_hw: tuple[int, int]) -> float:
    """How far (..., 2) pixels leave the image, where features are zero, in sides of the image; at most a third."""
    sides = points[0].new_tensor(image_hw)
    outside = max(float((-p / sides).maximum(p / sides - 1).max()) for p in points)
    return min(max(outside + 0.03, 0.04), 0.33)


def check_index(layers: Sequence[LayerRecord], index: int) -> None:
    """Raise ``ValueError`` unless every layer saw an image of that number."""
    for layer in layers:
        if not 0 <= index < layer.x.shape[0]:
            raise ValueError(f"index must be from 0 to {layer.x.shape[0] - 1}, the recorded batch, got {index}")


def check_deformable(layers: Sequence[LayerRecord], index: int) -> None:
    """Raise ``UserError`` unless there are deformable layers; else as :func:`check_index`."""
    if not layers:
        raise UserError("no deformable layers were recorded; the model has none")
    check_index(layers, index)
