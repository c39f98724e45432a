"""Figure 6 of the paper: deformed points over what a detector or a segmentation network found."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from deformvit.drawing import palette
from deformvit.figures import common
from deformvit.figures.common import Picture
from deformvit.figures.points import draw_points
from deformvit.figures.sheet import Legend, Panel, sheet
from deformvit.models.trace import LayerRecord
from deformvit.results import DetectionResult, Result, SegmentationResult

Colour = tuple[float, float, float]


def objects(
    image: Picture, layers: Sequence[LayerRecord], index: int = 0, title: str = "", *, result: Result | None = None,
    hw: tuple[int, int] | None = None, width: float | None = None,
) -> Figure:  # fmt: skip
    """The deformed points of the last layers of the last two stages over what a network found.

    Args:
        image, layers, index, title, hw, width: as in :func:`~deformvit.figures.points`. Of every map size the last
            layer is drawn, of the two smallest maps.
        result: what was found, whose outlines are drawn; by default it is on the image already.

    Raises:
        ValueError: no deformable layers were recorded.
    """
    common.check_deformable(layers, index)
    last = {layer.feature_hw: layer for layer in layers}  # later layers replace earlier ones of their stage
    chosen = list(last.values())[-2:]
    hw = common.size_of(image, hw)
    moved = [layer.pixels(layer.points()[1][index].cpu(), hw).flatten(1, 2) for layer in chosen]
    extent = common.extent_of(moved, hw)
    picture = common.muted(common.picture(image), 0.8)
    covered = _covered(result)

    def draw(layer: LayerRecord, axis: Axes, inches: float) -> None:
        draw_points(picture, layer, index, range(layer.points()[1].shape[1]), extent, axis, inches, arrows=False)
        draw_found(axis, inches, result, hw)

    panels = [
        Panel(partial(draw, layer), layer.label, _share_on(covered, places, hw) or str(common.outside(layer, index)))
        for layer, places in zip(chosen, moved, strict=True)
    ]
    legend = _legend(result, max(len(groups) for groups in moved))
    notes = [*(common.outside_notes(chosen) if covered is None else []), *common.grid_notes(chosen)]
    return sheet(
        [[panel] for panel in panels], extent.aspect, title=title, notes=notes,
        legend=legend, width=width or 5.6 * len(panels),
    )  # fmt: skip


def draw_found(axis: Axes, inches: float, result: Result | None, hw: tuple[int, int]) -> None:
    """Outlines of objects or of the areas of classes, with a border that is seen on dark, bright and busy images."""
    thick = float(np.clip(0.35 * inches, 0.8, 1.8))
    if isinstance(result, DetectionResult):
        scale = hw[0] / result.hw[0], hw[1] / result.hw[1]
        colours = object_colours(result)
        for number in reversed(range(len(result.labels))):  # the surest on top
            colour = colours[number]
            left, top, right, bottom = (float(value) for value in result.boxes[number])
            if result.masks is not None:
                _contour(axis, result.masks[number], scale, colour, thick)
            else:
                axis.add_patch(
                    Rectangle(
                        (left * scale[1], top * scale[0]), (right - left) * scale[1], (bottom - top) * scale[0],
                        fill=False, edgecolor=colour, linewidth=thick, path_effects=common.halo(colour, thick),
                        zorder=4,
                    )
                )  # fmt: skip
    elif isinstance(result, SegmentationResult):
        scale = hw[0] / result.hw[0], hw[1] / result.hw[1]
        colours = _unit(palette(len(result.classes)))
        tint = np.asarray(colours, dtype=np.float32)[result.label_map.numpy()]
        axis.imshow(tint, extent=(0, hw[1], hw[0], 0), alpha=0.3, interpolation="nearest")
        for label in result.label_map.unique().tolist():
            _contour(axis, result.label_map == label, scale, colours[label], 0.6 * thick)


def _covered(result: Result | None) -> Tensor | None:
    """(H, W) whether a pixel of the predicted image is on an object; None without objects."""
    if not isinstance(result, DetectionResult) or not len(result.labels):
        return None
    if result.masks is not None:
        return result.masks.any(0)
    covered = torch.zeros(result.hw, dtype=torch.bool)
    for left, top, right, bottom in result.boxes.clamp(min=0).round().int().tolist():
        covered[top:bottom, left:right] = True
    return covered


def _share_on(covered: Tensor | None, places: Tensor, hw: tuple[int, int]) -> str:
    """How many of (..., 2) points in pixels are on objects, beside the share of the image that these cover."""
    if covered is None:
        return ""
    size = torch.tensor(covered.shape)
    at = (places.reshape(-1, 2) / torch.tensor(hw) * size).floor().long()
    inside = ((at >= 0) & (at < size)).all(-1)
    on = covered[at[inside, 0], at[inside, 1]].sum() / len(at)
    return f"{100 * float(on):.0f} % of points on objects, which cover {100 * float(covered.float().mean()):.0f} %"


def object_colours(result: DetectionResult) -> list[Colour]:
    """A colour for each object: its class's, or its own where there is one class."""
    if len(result.classes) > 1:
        by_class = _unit(palette(len(result.classes)))
        return [by_class[label] for label in result.labels.tolist()]
    return _unit(palette(len(result.labels)))


def _contour(axis: Axes, mask: Tensor, scale: tuple[float, float], colour: Colour, thick: float) -> None:
    """The border of a mask, in pixels of the image that was predicted."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    if not len(rows):
        return
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    inside = np.pad(mask[top:bottom, left:right].float().numpy(), 1)
    y = (np.arange(top - 1, bottom + 1) + 0.5) * scale[0]
    x = (np.arange(left - 1, right + 1) + 0.5) * scale[1]
    lines = axis.contour(x, y, inside, levels=[0.5], colors=[colour], linewidths=thick, zorder=4)
    lines.set_path_effects(common.halo(colour, thick))


def _legend(result: Result | None, groups: int) -> Legend:
    handles: list[Artist] = [
        Line2D([], [], marker="o", linestyle="", color=common.COLOURS[i % len(common.COLOURS)], markeredgecolor="black")
        for i in range(groups)
    ]
    names = [f"points of group {i + 1}" for i in range(groups)]
    present: list[int] = []
    if isinstance(result, DetectionResult) and len(result.classes) > 1:
        present = result.labels.unique().tolist()
    elif isinstance(result, SegmentationResult):
        present = result.label_map.unique().tolist()
    if result is not None:
        colours = _unit(palette(len(result.classes)))
        handles += [Patch(facecolor=(*colours[label], 0.4), edgecolor=colours[label]) for label in present]
        names += [result.classes[label] for label in present]
    return Legend(handles, names)


def _unit(colours: Sequence[tuple[int, int, int]]) -> list[Colour]:
    return [(red / 255, green / 255, blue / 255) for red, green, blue in colours]
