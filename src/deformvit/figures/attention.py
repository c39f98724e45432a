"""Figures 5 and 7: the keys that matter, all in all and for one query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor

from deformvit.errors import UserError
from deformvit.figures import common
from deformvit.figures.common import Extent, Picture
from deformvit.figures.sheet import Legend, Panel, sheet
from deformvit.models.importance import key_importance
from deformvit.models.trace import LayerRecord

LARGEST = 18.0
"""Area in square points of the circle of the highest weight, for a panel one inch wide."""


def keys(
    image: Picture, layers: Sequence[LayerRecord], index: int = 0, title: str = "", *,
    point: tuple[float, float] | None = None, count: int = 150, hw: tuple[int, int] | None = None,
    width: float | None = None,
) -> Figure:  # fmt: skip
    """Figure 5: the most important keys, by propagating attention through all given layers; circles sized by score.

    The propagation and its formula are in :mod:`deformvit.models.importance`.

    Args:
        image, index, title, hw, width: as in :func:`~deformvit.figures.points`.
        layers: deformable layers that :func:`deformvit.record` recorded, first to last.
        point: (y, x) in pixels of what the network saw: follow the attention of the last layer's query there,
            instead of all queries alike.
        count: how many keys to draw, those of the highest scores.

    Raises:
        ValueError: no deformable layers were recorded, or no keys are to be drawn.
    """
    common.check_deformable(layers, index)
    if count < 1:
        raise UserError(f"count must be at least 1, got {count}")
    hw = common.size_of(image, hw)
    query = None if point is None else layers[-1].query_at(point, hw)
    found = key_importance(layers, index, query)
    scores = torch.cat([entry.scores.flatten() for entry in found])
    places = torch.cat([entry.layer.index_pixels(entry.keys, hw).flatten(0, 1) for entry in found])
    number = torch.cat([torch.full((entry.scores.numel(),), i) for i, entry in enumerate(found)])
    best = scores.topk(min(count, len(scores))).indices.flip(0)  # the highest on top
    share = 100 * float(scores[best].sum() / scores.sum())
    extent = common.extent_of([places[best]], hw)
    picture = common.picture(image)
    dark = common.muted(picture, 0.6, 0.36)

    def seen(axis: Axes, _inches: float) -> None:
        common.show(axis, picture, extent)
        if query is not None:
            draw_star(axis, layers[-1], query, hw)

    def important(axis: Axes, inches: float) -> None:
        common.show(axis, dark, extent)
        draw_circles(axis, inches, dark, places[best], scores[best], number[best].tolist(), hw)
        if query is not None:
            draw_star(axis, layers[-1], query, hw)

    handles = [
        Line2D([], [], marker="o", linestyle="", color=common.COLOURS[i % len(common.COLOURS)], markeredgecolor="black")
        for i in range(len(found))
    ]
    panels = [
        [Panel(seen, "what the network saw")],
        [Panel(important, f"{len(best)} keys with {share:.0f} % of the importance")],
    ]
    legend = Legend(handles, [entry.layer.label for entry in found])
    return sheet(panels, extent.aspect, title=title, notes=common.grid_notes(layers), legend=legend, width=width or 9.6)


def query(
    image: Picture, rows: Sequence[Sequence[tuple[str, LayerRecord]]], point: tuple[float, float], index: int = 0,
    title: str = "", *, heads: str | Sequence[int] = "mean", count: int = 30, hw: tuple[int, int] | None = None,
    width: float | None = None,
) -> Figure:  # fmt: skip
    """Figure 7: the keys of highest attention for the query at a chosen point.

    Args:
        image, index, title, hw, width: as in :func:`~deformvit.figures.points`.
        rows: labels and layers that :func:`deformvit.record` recorded, of any kind of attention; the
            layers of a row stand together, as those of several models.
        point: (y, x) in pixels of what the network saw; each layer's query nearest to it is shown.
        heads: "mean" of all heads, "each" head, or numbers of heads counted from 1; a panel for each.
        count: how many keys to draw in a panel.

    Raises:
        ValueError: no layers, a point that is not on the image, or no such head.
    """
    hw = common.size_of(image, hw)
    if not any(rows):
        raise UserError("no attention layers were recorded")
    if count < 1:
        raise UserError(f"count must be at least 1, got {count}")
    if not (0 <= point[0] <= hw[0] and 0 <= point[1] <= hw[1]):
        raise UserError(f"point must be on the image of {hw[0]} x {hw[1]} pixels, got {point}")
    common.check_index([layer for row in rows for _, layer in row], index)
    lines = [
        [panel for name, layer in row for panel in attended(name, layer, point, hw, index, heads, count)]
        for row in rows
    ]
    extent = common.extent_of([panel.places for line in lines for panel in line], hw)
    picture = common.muted(common.picture(image), 0.6, 0.36)
    parts = [[panel.drawn(picture, extent) for panel in line] for line in lines]
    alone = sum(map(len, parts)) == 1
    notes = [
        "Star: the query; circles: its strongest keys, their area is the attention weight, colours are offset groups. "
        "White frame: all that a layer of windows or neighbourhoods can reach.",
        *common.grid_notes([layer for row in rows for _, layer in row if layer.deformed is not None]),
    ]
    return sheet(parts, extent.aspect, title=title, notes=notes, width=width or (5.2 if alone else None))


@dataclass(frozen=True)
class Attended:
    """What a query attends to with one head or all of a layer."""

    name: str
    layer: LayerRecord
    head: str
    query: int
    places: Tensor
    """(K, 2) pixels of the keys, weakest first."""
    weights: Tensor
    groups: list[int]
    """Which of the layer's sets of keys each belongs to."""
    reach: tuple[float, float, float, float] | None
    """Top, left, bottom, right of all that it could attend to, in pixels; None where that is the whole map."""

    def drawn(self, picture: np.ndarray, extent: Extent) -> Panel:
        """The panel, on a picture of what the network saw."""
        share = 100 * float(self.weights.sum())

        def draw(axis: Axes, inches: float) -> None:
            common.show(axis, picture, extent)
            if self.reach is not None:
                draw_frame(axis, self.reach)
            draw_circles(axis, inches, picture, self.places, self.weights, self.groups, extent.hw)
            draw_star(axis, self.layer, self.query, extent.hw)

        note = f"{len(self.weights)} keys, {share:.0f} % of its attention"
        return Panel(draw, self.name, f"{self.head}: {note}" if self.head else note)


def attended(
    name: str, layer: LayerRecord, point: tuple[float, float], hw: tuple[int, int], index: int,
    heads: str | Sequence[int], count: int,
) -> list[Attended]:  # fmt: skip
    """For each chosen head, or all together, the strongest keys of the query at a point."""
    query_ = layer.query_at(point, hw)
    found = layer.attend([query_], index)
    keys_, weights = found.keys[:, 0].cpu(), found.weights[:, 0].cpu()
    places, reach = layer.index_pixels(keys_, hw), None
    if layer.kind in ("window", "shifted", "neighborhood"):
        reach = frame(layer, keys_[0][(weights > 0).any(0)], hw)
    return [
        Attended(
            name, layer, "all heads" if head is None else f"head {head + 1}", query_,
            *_best(places, weights, layer.key_sets, head, count), reach,
        )
        for head in _chosen_heads(heads, layer.num_heads)
    ]  # fmt: skip


def frame(layer: LayerRecord, cells: Tensor, hw: tuple[int, int]) -> tuple[float, float, float, float]:
    """Top, left, bottom, right in pixels of what (N, 2) cells of a map cover of the image."""
    top, left = layer.index_pixels(cells.min(0).values - 0.5, hw).tolist()
    bottom, right = layer.index_pixels(cells.max(0).values + 0.5, hw).tolist()
    return max(top, 0.0), max(left, 0.0), min(bottom, hw[0]), min(right, hw[1])


def draw_frame(axis: Axes, reach: tuple[float, float, float, float]) -> None:
    """A rectangle that is seen on any ground."""
    top, left, bottom, right = reach
    edge = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="white", linewidth=1.2)
    edge.set_path_effects(common.halo("white", 1.2))
    axis.add_patch(edge)


def draw_circles(
    axis: Axes, inches: float, picture: np.ndarray, places: Tensor, weights: Tensor, sets: Sequence[int],
    hw: tuple[int, int],
) -> None:  # fmt: skip
    """A circle on each of (K, 2) keys in pixels, its area by weight and its colour by the set it is of."""
    axis.scatter(
        places[:, 1], places[:, 0],
        s=(LARGEST * inches**2 * weights / weights.max()).numpy(),  # areas: twice the weight is twice the ink
        facecolor=[common.COLOURS[number % len(common.COLOURS)] for number in sets],
        edgecolor=common.edges(picture, places.numpy(), hw), linewidth=0.5, alpha=0.85,
    )  # fmt: skip


def _chosen_heads(heads: str | Sequence[int], number: int) -> list[int | None]:
    if heads == "mean":
        return [None]
    if heads == "each":
        return list(range(number))
    if isinstance(heads, str) or not heads:
        raise UserError(f'heads must be "mean", "each" or numbers of heads, got {heads!r}')
    wrong = [head for head in heads if not 1 <= head <= number]
    if wrong:
        raise UserError(f"heads: there is no head {wrong[0]} in a layer of {number} heads")
    return [head - 1 for head in heads]


def _best(
    places: Tensor, weights: Tensor, groups: list[int], head: int | None, count: int
) -> tuple[Tensor, Tensor, list[int]]:
    """The keys of highest weight, weakest first: (K, 2) places, (K,) weights, and (K,) the set that they are of.

    Args:
        places: (M, N, 2) of the keys.
        weights: (M, N).
        groups: which set of keys each head sees.
        head: a head, or None for the mean of all: where heads share keys, these are added up.
    """
    if head is not None:
        places, weights, number = places[head], weights[head], torch.full((places.shape[1],), groups[head])
    else:
        distinct = sorted(set(groups))
        members = [torch.tensor([g == group for g in groups]) for group in distinct]
        number = torch.tensor(distinct).repeat_interleave(places.shape[1])
        places = torch.cat([places[chosen][0] for chosen in members])
        weights = torch.cat([weights[chosen].sum(0) for chosen in members]) / len(groups)
    best = weights.topk(min(count, len(weights))).indices.flip(0)
    best = best[weights[best] > 0]
    return places[best], weights[best], number[best].tolist()


def draw_star(axis: Axes, layer: LayerRecord, query_: int, hw: tuple[int, int]) -> None:
    """Where a query, counted row by row, is on the image."""
    row, column = divmod(query_, layer.feature_hw[1])
    y, x = layer.index_pixels(torch.tensor([row, column], dtype=torch.float32), hw).tolist()
    axis.scatter([x], [y], s=130, marker="*", facecolor="white", edgecolor="black", linewidth=0.8, zorder=5)
