"""Figure 2 of the paper: reference points, offsets as arrows and deformed points on an image, by layer and group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from deformvit.figures import common
from deformvit.models.trace import LayerRecord


def points(image: Tensor, layers: Sequence[LayerRecord], index: int = 0, title: str = "") -> Figure:
    """Draw the points of every layer (rows) and group (columns) on one image of a batch.

    Args:
        image: (3, H, W), values in [0, 1], as the network saw it.
        layers: deformable layers that :func:`deformvit.record` recorded.
        index: which image of the recorded batch.
        title: drawn above.

    Raises:
        ValueError: no deformable layers were recorded.
    """
    common.check_deformable(layers, index)
    deformed = [layer.points()[1][index] for layer in layers]
    rows, cols = len(layers), max(len(groups) for groups in deformed)
    height, width = image.shape[-2:]
    panel = common.panel_height((height, width), 3.0)
    figure = Figure(figsize=(3.0 * cols + 0.3, panel * rows + 0.7 + 0.1 * rows), layout="constrained")
    axes = figure.subplots(rows, cols, squeeze=False)
    moved = [layer.pixels(groups, (height, width)) for layer, groups in zip(layers, deformed, strict=True)]
    margin = common.margin_for(moved, (height, width))
    picture = common.picture(image)
    for row, layer in enumerate(layers):
        for group in range(cols):
            axis = axes[row, group]
            axis.set_axis_off()
            if group < len(deformed[row]):
                _panel(axis, picture, layer, index, group, margin)
            if group == 0:
                axis.set_title(layer.label, fontsize=9, loc="left", fontweight="bold")
            if group < len(deformed[row]):
                axis.set_title(f"group {group + 1}", fontsize=9, loc="right", color="0.35")
    if title:
        figure.suptitle(title, fontsize=11, parse_math=False)  # a file may be called $1$.png
    return figure


def _panel(axis: Axes, picture: np.ndarray, layer: LayerRecord, index: int, group: int, margin: float) -> None:
    height, width = picture.shape[:2]
    reference, deformed = (
        layer.pixels(points.cpu(), (height, width)).reshape(-1, 2).numpy()
        for points in (layer.points()[0], layer.points()[1][index, group])
    )
    move = deformed - reference
    colour = common.COLOURS[group % len(common.COLOURS)]
    size = float(np.clip(700 / len(reference), 4, 60))
    fine = min(1.0, (size / 12) ** 0.5)  # thinner lines where a large map has thousands of points
    common.show(axis, picture, margin, alpha=0.9)
    axis.quiver(
        reference[:, 1], reference[:, 0], move[:, 1], move[:, 0], angles="xy", scale_units="xy", scale=1, color="white",
        edgecolor="black", linewidth=0.3 * fine, width=0.007 * fine, headwidth=3.5, minlength=0,
    )  # fmt: skip
    axis.scatter(
        reference[:, 1], reference[:, 0], s=size * 0.4, facecolor="white", edgecolor="black", linewidth=0.4 * fine
    )
    axis.scatter(deformed[:, 1], deformed[:, 0], s=size, facecolor=colour, edgecolor="black", linewidth=0.5 * fine)


def objects(image: Tensor, layers: Sequence[LayerRecord], index: int = 0, title: str = "") -> Figure:
    """Figure 6: the deformed points of the last layers of the last two stages over what a network found.

    Args:
        image: (3, H, W), values in [0, 1], with boxes and masks or labels drawn on it (:mod:`deformvit.drawing`).
        layers, index, title: as in :func:`points`. Of every map size the last layer is drawn, of the two smallest maps.

    Raises:
        ValueError: no deformable layers were recorded.
    """
    common.check_deformable(layers, index)
    last = {layer.feature_hw: layer for layer in layers}  # later layers replace earlier ones of their stage
    chosen = list(last.values())[-2:]
    hw = (image.shape[-2], image.shape[-1])
    panel = common.panel_height(hw, 5.0)
    figure = Figure(figsize=(5.0 * len(chosen) + 0.2, panel + 0.7), layout="constrained")
    picture = common.picture(image)
    moved = [layer.pixels(layer.points()[1][index].cpu(), hw).flatten(1, 2) for layer in chosen]
    margin = common.margin_for(moved, hw)
    for axis, layer, groups in zip(figure.subplots(1, len(chosen), squeeze=False)[0], chosen, moved, strict=True):
        common.show(axis, picture, margin)
        axis.set_title(layer.label, fontsize=9, loc="left", fontweight="bold")
        size = float(np.clip(6000 / groups[..., 0].numel(), 1.5, 40))
        for group, points_ in enumerate(groups.numpy()):
            axis.scatter(
                points_[:, 1], points_[:, 0], s=size, facecolor=common.COLOURS[group % len(common.COLOURS)],
                edgecolor="black", linewidth=0.3 * min(1.0, size / 6), label=f"group {group + 1}",
            )  # fmt: skip
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, -0.02), ncols=len(groups), fontsize=7, frameon=True)
    if title:
        figure.suptitle(title, fontsize=11, parse_math=False)
    return figure
