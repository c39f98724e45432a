"""Figure 2 of the paper: reference points, offsets as arrows and deformed points on an image, by layer and group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deformvit.figures import common
from deformvit.figures.common import Extent, Picture
from deformvit.figures.sheet import Panel, sheet
from deformvit.models.trace import LayerRecord

CROWDED = 14.0
"""Points (1/72 inch) between neighbours below which several groups are drawn without arrows."""
LEAST = 6.0
"""Points (1/72 inch) between neighbours that are drawn."""


def points(
    image: Picture, layers: Sequence[LayerRecord], index: int = 0, title: str = "", *,
    hw: tuple[int, int] | None = None, width: float | None = None,
) -> Figure:  # fmt: skip
    """Draw the points of every layer and group on one image of a batch.

    Args:
        image: what the network saw, as sharp as there is: (3, H, W) with values in [0, 1], or a PIL image.
        layers: deformable layers that :func:`deformvit.record` recorded.
        index: which image of the recorded batch.
        title: drawn above.
        hw: (H, W) of what the network saw, if the image is drawn at another size.
        width: inches of the figure; by default as its panels need.

    Raises:
        ValueError: no deformable layers were recorded.
    """
    common.check_deformable(layers, index)
    hw = common.size_of(image, hw)
    extent = common.extent_of_layers(layers, index, hw)
    picture = common.muted(common.picture(image))
    parts = [
        [
            Panel(
                partial(draw_points, picture, layer, index, [group], extent),
                f"{layer.label}, group {group + 1}",
                str(common.outside(layer, index, group)),
            )
            for group in range(layer.points()[1].shape[1])
        ]
        for layer in layers
    ]
    notes = [
        "White: reference points; arrows: offsets; coloured: deformed points, where keys are sampled.",
        *common.outside_notes(layers),
        *common.grid_notes(layers),
    ]
    return sheet(parts, extent.aspect, title=title, notes=notes, width=width)


def draw_points(
    picture: np.ndarray, layer: LayerRecord, index: int, groups: Sequence[int], extent: Extent, axis: Axes,
    inches: float, *, arrows: bool = True,
) -> None:  # fmt: skip
    """The picture with deformed points of groups, sized by their distance, and with reference points and arrows.

    Where neighbours lie closer than :data:`LEAST`, every n-th row and column is drawn, which the panel says; where many
    points of several groups would hide one another, only deformed points are.
    """
    common.show(axis, picture, extent)
    grid, hw = layer.points()[0], extent.hw
    every = math.ceil(LEAST / extent.distance(inches, grid.shape))
    distance = every * extent.distance(inches, grid.shape)
    chosen = (slice(every // 2, None, every), slice(every // 2, None, every))
    reference = layer.pixels(grid[chosen].cpu(), hw).reshape(-1, 2).numpy()
    arrows = arrows and (len(groups) == 1 or distance >= CROWDED)
    diameter = float(np.clip((0.36 if arrows else 0.3) * distance, 1.5, 9.0))
    fine = min(1.0, diameter / 6)  # thinner lines where a large map has thousands of points
    for group in groups:
        deformed = layer.pixels(layer.points()[1][index, group][chosen].cpu(), hw).reshape(-1, 2).numpy()
        move = deformed - reference
        if arrows:
            axis.quiver(
                reference[:, 1], reference[:, 0], move[:, 1], move[:, 0], angles="xy", scale_units="xy", scale=1,
                color="white", edgecolor="black", linewidth=0.4 * fine, units="inches", width=0.16 * diameter / 72,
                headwidth=3.5, minlength=0,
            )  # fmt: skip
        if arrows and group == groups[0]:
            axis.scatter(
                reference[:, 1], reference[:, 0], s=(0.6 * diameter) ** 2, facecolor="white", edgecolor="black",
                linewidth=0.5 * fine,
            )  # fmt: skip
        axis.scatter(
            deformed[:, 1], deformed[:, 0], s=diameter**2, facecolor=common.COLOURS[group % len(common.COLOURS)],
            edgecolor=common.edges(picture, deformed, hw), linewidth=0.7 * fine,
        )  # fmt: skip
    if every > 1:
        axis.text(
            0.02, 0.02, f"1 of {every**2} points drawn", transform=axis.transAxes, fontsize=7, color="white",
            path_effects=common.halo("white", 0.2), zorder=6,
        )  # fmt: skip
