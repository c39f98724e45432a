"""Figure 2 of the paper: reference points, offsets as arrows and deformed points on an image, by layer and group."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from deformvit.errors import UserError
from deformvit.models.trace import LayerPoints

COLOURS = ("#ff4d6d", "#4cc9f0", "#ffd166", "#80ed99", "#c77dff", "#ff9f1c")


def points(image: Tensor, layers: Sequence[LayerPoints], index: int = 0, title: str = "") -> Figure:
    """Draw the points of every layer (rows) and group (columns) on one image of a batch.

    Args:
        image: (3, H, W), values in [0, 1], as the network saw it.
        layers: what :func:`deformvit.models.trace.record_points` recorded.
        index: which image of the recorded batch.
        title: drawn above.

    Raises:
        ValueError: no deformable layers were recorded.
    """
    if not layers:
        raise UserError("no deformable layers were recorded; the model has none that move points")
    rows, cols = len(layers), max(layer.deformed.shape[1] for layer in layers)
    height, width = image.shape[-2:]
    panel = 3.0 * min(max(height / width, 0.4), 2.5)
    figure = Figure(figsize=(3.0 * cols + 0.3, panel * rows + 0.7 + 0.1 * rows), layout="constrained")
    axes = figure.subplots(rows, cols, squeeze=False)
    margin = _margin([layer.pixels(layer.deformed[index], (height, width)) for layer in layers], (height, width))
    picture = image.permute(1, 2, 0).clamp(0, 1).float().cpu().numpy()
    for row, layer in enumerate(layers):
        for group in range(cols):
            axis = axes[row, group]
            axis.set_axis_off()
            if group < layer.deformed.shape[1]:
                _panel(axis, picture, layer, index, group, margin)
            if group == 0:
                axis.set_title(_label(layer.name), fontsize=9, loc="left", fontweight="bold")
            if group < layer.deformed.shape[1]:
                axis.set_title(f"group {group + 1}", fontsize=9, loc="right", color="0.35")
    if title:
        figure.suptitle(title, fontsize=11, parse_math=False)  # a file may be called $1$.png
    return figure


def _label(name: str) -> str:
    """A layer's path in words, if it is one of our models'."""
    found = re.search(r"(?:^|\.)stages\.(\d+)\.blocks\.(\d+)\.attn$", name)
    return f"stage {int(found[1]) + 1}, block {int(found[2]) + 1}" if found else name


def _margin(points: Sequence[Tensor], image_hw: tuple[int, int]) -> float:
    """How far points leave the image, where features are zero, in sides of the image; at most a third."""
    sides = points[0].new_tensor(image_hw)
    outside = max(float(torch.maximum(-p / sides, p / sides - 1).max()) for p in points)
    return min(max(outside + 0.03, 0.04), 0.33)


def _panel(axis: Axes, picture: np.ndarray, layer: LayerPoints, index: int, group: int, margin: float) -> None:
    height, width = picture.shape[:2]
    reference = layer.pixels(layer.reference.cpu(), (height, width)).reshape(-1, 2).numpy()
    deformed = layer.pixels(layer.deformed[index, group].cpu(), (height, width)).reshape(-1, 2).numpy()
    move = deformed - reference
    colour = COLOURS[group % len(COLOURS)]
    size = float(np.clip(700 / len(reference), 4, 60))
    fine = min(1.0, (size / 12) ** 0.5)  # thinner lines where a large map has thousands of points
    axis.imshow(picture, extent=(0, width, height, 0), interpolation="nearest", alpha=0.9)
    axis.quiver(
        reference[:, 1], reference[:, 0], move[:, 1], move[:, 0], angles="xy", scale_units="xy", scale=1, color="white",
        edgecolor="black", linewidth=0.3 * fine, width=0.007 * fine, headwidth=3.5, minlength=0,
    )  # fmt: skip
    axis.scatter(
        reference[:, 1], reference[:, 0], s=size * 0.4, facecolor="white", edgecolor="black", linewidth=0.4 * fine
    )
    axis.scatter(deformed[:, 1], deformed[:, 0], s=size, facecolor=colour, edgecolor="black", linewidth=0.5 * fine)
    axis.set_xlim(-margin * width, (1 + margin) * width)
    axis.set_ylim((1 + margin) * height, -margin * height)
