"""One wide picture: an image, what is predicted, where keys are sampled, and a query's attention beside windows'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from deformvit.errors import UserError
from deformvit.figures import attention, common
from deformvit.figures.common import Extent, Picture
from deformvit.figures.objects import draw_found
from deformvit.figures.points import draw_points
from deformvit.figures.sheet import GAP, LINE, Panel, checked_width, inches, note_lines, place, strip_of, wrapped, write
from deformvit.layers import WindowAttention
from deformvit.layers.attention_weights import attention_weights
from deformvit.models.trace import LayerRecord, Trace
from deformvit.results import Result

COLUMNS = 3
WIDTH = 12.0
READING = (
    "Above: where keys are sampled. Coloured: deformed points, a colour for each offset group; white, where there is "
    "room: reference points and offsets.",
    "Below: what the query at the star attends to. Circles: keys, their area the attention weight.",
)


def summary(
    image: Picture, trace: Trace, *, point: tuple[float, float], result: Result | None = None, index: int = 0,
    title: str = "", layers: Sequence[LayerRecord] = (), other: Trace | None = None, other_name: str = "",
    hw: tuple[int, int] | None = None, width: float | None = None,
) -> Figure:  # fmt: skip
    """The image and its prediction, the points of three layers, and what one query attends to, beside windows.

    Args:
        image, index, title, hw, width: as in :func:`~deformvit.figures.points`; 12 inches wide by default.
        trace: what :func:`deformvit.record` recorded.
        point: (y, x) of the query in pixels of what the network saw.
        result: the prediction.
        layers: deformable layers, by default all; of more than three the first, the middle and the last are shown. The
            query's attention is that of the one with the largest map on which single cells can be seen.
        other: what was recorded of another model, such as a Swin of the same size, on the same image. Without one, the
            panels show what windows could reach at most, as there are no weights to show.
        other_name: what it is called.

    Raises:
        UserError: a model without deformable layers, or a layer without points.
    """
    chosen = _three(layers or trace.deformable)
    common.check_deformable(chosen, index)
    hw = common.size_of(image, hw)
    for layer in chosen:
        layer.points()
    if not (0 <= point[0] <= hw[0] and 0 <= point[1] <= hw[1]):
        raise UserError(f"point must be on the image of {hw[0]} x {hw[1]} pixels, got {point}")
    picture = common.picture(image)
    upper, above = _points(picture, chosen, index, hw)
    asked = _of_a_query(chosen)
    lower, below, notes = _attention(picture, asked, trace, other, other_name, point, index, hw)
    wide = checked_width(width) or WIDTH
    notes = [line for note in notes for line in wrapped(note, wide - 2 * GAP, 7.5)]
    told = 0.14 * wide
    seen = common.Extent(hw)
    # The photo is as tall as both rows: side * (above + below) + second + GAP = seen * photo, and side by side
    # photo + told + COLUMNS * side and the gaps are as wide as the figure.
    shapes, room = (above.aspect + below.aspect) / seen.aspect, wide - told - (COLUMNS + 3) * GAP
    lines = [note_lines(panels, 0.95 * room / (shapes + COLUMNS)) for panels in (upper, lower)]
    first, second = map(strip_of, lines)
    side = (room - (second + GAP) / seen.aspect) / (shapes + COLUMNS)
    rows = side * (above.aspect + below.aspect) + second + GAP
    foot = LINE * len(notes) + 0.06
    figure = Figure(figsize=(wide, first + rows + GAP + foot))

    def photo(axis: Axes, size: float) -> None:
        common.show(axis, picture, seen)
        draw_found(axis, size, result, hw)
        attention.draw_star(axis, asked, asked.query_at(point, hw), hw)

    bottom = foot + GAP
    sees = f"the network sees {hw[0]} x {hw[1]} pixels"
    place(figure, Panel(photo, title or "image", sees), GAP, bottom, rows / seen.aspect, rows, 0)
    left = 2 * GAP + rows / seen.aspect
    _tell(figure, result, left, bottom, told, rows)
    left += told + GAP
    for panels, y, extent, number in (
        (upper, bottom + side * below.aspect + second + GAP, above, lines[0]), (lower, bottom, below, lines[1]),
    ):  # fmt: skip
        for column, panel in enumerate(panels):
            place(figure, panel, left + column * (side + GAP), y, side, side * extent.aspect, number)
    for number, note in enumerate(reversed(notes)):
        write(figure, note, GAP, 0.05 + LINE * number, wide - 2 * GAP, 7.5, color="0.3")
    return figure


def _three(layers: Sequence[LayerRecord]) -> list[LayerRecord]:
    """The first, the middle and the last of the layers."""
    last = len(layers) - 1
    return [layers[i] for i in sorted({0, (last + 1) // 2, last})] if layers else []


def _of_a_query(layers: Sequence[LayerRecord]) -> LayerRecord:
    """The layer of the largest map of up to 24 cells on its shorter side, or of the smallest."""
    sides = [min(layer.feature_hw) for layer in layers]
    fitting = [side for side in sides if side <= 24]
    return layers[sides.index(max(fitting) if fitting else min(sides))]


def _points(
    picture: np.ndarray, layers: Sequence[LayerRecord], index: int, hw: tuple[int, int]
) -> tuple[list[Panel], Extent]:
    ground = common.muted(picture)
    extent = common.extent_of_layers(layers, index, hw)
    panels = [
        Panel(
            partial(draw_points, ground, layer, index, range(layer.points()[1].shape[1]), extent),
            layer.label,
            _counted(layer.points()[1].shape[1], layer.points()[0][..., 0].numel()),
        )
        for layer in layers
    ]
    return panels, extent


def _counted(groups: int, keys: int) -> str:
    return f"{groups} groups of {keys} keys" if groups > 1 else f"{keys} keys"


def _attention(
    picture: np.ndarray, layer: LayerRecord, trace: Trace, other: Trace | None, other_name: str,
    point: tuple[float, float], index: int, hw: tuple[int, int],
) -> tuple[list[Panel], Extent, list[str]]:  # fmt: skip
    """Panels of the query in this layer and in two layers of windows, and what has to be said of them."""
    ground = common.muted(picture, 0.6, 0.36)
    ours = _all_heads(f"{layer.label}: deformable", layer, point, hw, index)
    notes = common.grid_notes([layer])
    if other is not None:
        found = _counterparts(layer, other)
        theirs = [
            _all_heads(f"{other_name}, {beside.label}: {beside.kind}", beside, point, hw, index) for beside in found
        ]
        extent = common.extent_of([entry.places for entry in (ours, *theirs)], hw)
        return [entry.drawn(ground, extent) for entry in (ours, *theirs)], extent, notes
    extent = common.extent_of([ours.places], hw)
    query = layer.query_at(point, hw)
    windows = (found.layer for found in trace.layers if found.feature_hw == layer.feature_hw)
    size = next((found.window_size for found in windows if isinstance(found, WindowAttention)), 7)
    panels = [ours.drawn(ground, extent)]
    for shift, name in ((0, "window"), (size // 2, "shifted window")):
        cells = _reach(layer, query, size, shift)
        panels.append(
            Panel(
                partial(_draw_reach, picture, layer, query, cells, extent),
                f"Swin, {name} of {size} x {size}",
                f"{len(cells)} of {layer.feature_hw[0] * layer.feature_hw[1]} keys in reach",
            )
        )
    reach = (
        "Frame and rings: the keys that Swin's windows let this query reach on the same map, whatever its weights. No "
        "Swin was run; --compare MODEL shows what one attends to."
    )
    return panels, extent, [reach, *notes]


def _all_heads(
    name: str, layer: LayerRecord, point: tuple[float, float], hw: tuple[int, int], index: int
) -> attention.Attended:
    (found,) = attention.attended(name, layer, point, hw, index, "mean", 30)
    return replace(found, head="")


def _counterparts(layer: LayerRecord, other: Trace) -> list[LayerRecord]:
    """Up to two neighbouring attention layers of another model on a map of the same size, up to the same place."""
    alike = [found for found in other.layers if found.feature_hw == layer.feature_hw]
    if not alike:
        raise UserError(f"the model to compare with has no attention on a map of {layer.feature_hw}")
    place_ = next((i for i, found in enumerate(alike) if found.name == layer.name), len(alike) - 1)
    return alike[max(place_ - 1, 0) : max(place_ - 1, 0) + 2]


def _reach(layer: LayerRecord, query: int, size: int, shift: int) -> Tensor:
    """(N, 2) cells that a query can attend to in Swin's windows on the layer's map."""
    windows = WindowAttention(1, 1, size, shift, swin=True)
    found = attention_weights(windows, torch.zeros(1, 1, *layer.feature_hw), torch.tensor([query]))
    return found.keys[0, 0][found.weights[0, 0] > 0]


def _draw_reach(
    picture: np.ndarray, layer: LayerRecord, query: int, cells: Tensor, extent: Extent, axis: Axes, inches: float
) -> None:  # fmt: skip
    """The picture, dark outside of the cells in reach, with a ring on each of these."""
    hw = extent.hw
    top, left, bottom, right = reach = attention.frame(layer, cells, hw)
    common.show(axis, 0.6 * common.muted(picture, 0.4, 0.25), extent)
    bright = axis.imshow(picture, extent=(0, hw[1], hw[0], 0), interpolation="antialiased")
    bright.set_clip_path(Rectangle((left, top), right - left, bottom - top, transform=axis.transData))
    attention.draw_frame(axis, reach)
    places = layer.index_pixels(cells, hw).numpy()
    distance = extent.distance(inches, layer.feature_hw)
    if distance > 6:  # else the frame alone has to do
        axis.scatter(
            places[:, 1], places[:, 0], s=min(0.3 * distance, 7.0) ** 2, facecolor="none", edgecolor="white",
            linewidth=1.1, path_effects=common.halo("white", 1.1),
        )  # fmt: skip
    attention.draw_star(axis, layer, query, hw)


def _tell(figure: Figure, result: Result | None, left: float, bottom: float, wide: float, tall: float) -> None:
    """The prediction as bars, and how the panels beside it are read."""
    width, height = figure.get_size_inches()
    lines = [line for text in READING for line in [*wrapped(text, wide, 7.5), ""]][:-1]
    for number, line in enumerate(reversed(lines)):
        write(figure, line, left, bottom + LINE * number, wide, 7.5, color="0.3")
    room = max(int((tall - LINE * len(lines) - 0.1) / 0.35), 1)
    y = bottom + tall
    write(figure, "prediction" if result else "", left, y + 0.05, wide, 8.5, weight="bold")
    for found in result.findings()[: min(room, 5)] if result else ():
        y -= 0.19
        write(figure, found.name, left, y, wide - inches(found.text, 8.0) - 0.1, 8.0)
        write(figure, found.text, left + wide, y, wide, 8.0, ha="right")
        for value, colour in ((1.0, "0.9"), (found.value, common.COLOURS[0])):
            figure.add_artist(
                Rectangle(
                    (left / width, (y - 0.1) / height), wide * value / width, 0.055 / height, facecolor=colour,
                    transform=figure.transFigure,
                )
            )  # fmt: skip
        y -= 0.16
