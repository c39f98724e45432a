"""Figures 5 and 7: the keys that matter, all in all and for one query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from deformvit.errors import UserError
from deformvit.figures import common
from deformvit.models.importance import key_importance
from deformvit.models.trace import LayerRecord


def keys(
    image: Tensor, layers: Sequence[LayerRecord], index: int = 0, title: str = "", *,
    point: tuple[float, float] | None = None, count: int = 150,
) -> Figure:  # fmt: skip
    """Figure 5: the most important keys, by propagating attention through all given layers; circles sized by score.

    The propagation and its formula are in :mod:`deformvit.models.importance`.

    Args:
        image: (3, H, W), values in [0, 1], as the network saw it.
        layers: deformable layers that :func:`deformvit.record` recorded, first to last.
        index: which image of the recorded batch.
        title: drawn above.
        point: (y, x) pixels: follow the attention of the last layer's query there, instead of all queries alike.
        count: how many keys to draw, those of the highest scores.

    Raises:
        ValueError: no deformable layers were recorded, or no keys are to be drawn.
    """
    common.check_deformable(layers, index)
    if count < 1:
        raise UserError(f"count must be at least 1, got {count}")
    hw = (image.shape[-2], image.shape[-1])
    query = None if point is None else layers[-1].query_at(point, hw)
    found = key_importance(layers, index, query)
    scores = torch.cat([entry.scores.flatten() for entry in found])
    places = torch.cat([entry.layer.index_pixels(entry.keys, hw).flatten(0, 1) for entry in found])
    number = torch.cat([torch.full((entry.scores.numel(),), i) for i, entry in enumerate(found)])
    best = scores.topk(min(count, len(scores))).indices.flip(0)  # the highest on top
    share = 100 * float(scores[best].sum() / scores.sum())

    panel = common.panel_height(hw, 4.5)
    figure = Figure(figsize=(9.4, panel + 0.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    margin = common.margin_for([places[best]], hw)
    picture = common.picture(image)
    common.show(left, picture, margin)
    common.show(right, 0.55 * picture, margin)
    sizes = 260 * (scores[best] / scores[best].max()).numpy()  # areas, so twice the score is twice the ink
    colours = [common.COLOURS[int(i) % len(common.COLOURS)] for i in number[best]]
    right.scatter(
        places[best, 1], places[best, 0], s=sizes, facecolor=colours, alpha=0.75, edgecolor="black", linewidth=0.4
    )
    if point is not None:
        for axis in (left, right):
            _star(axis, layers[-1], layers[-1].query_at(point, hw), hw)
    handles = [
        Line2D([], [], marker="o", linestyle="", color=common.COLOURS[i % len(common.COLOURS)], markeredgecolor="black")
        for i in range(len(found))
    ]
    names = [entry.layer.label for entry in found]
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 4), fontsize=8, frameon=False)
    left.set_title("what the network saw", fontsize=9, loc="left")
    right.set_title(f"{len(best)} keys with {share:.0f} % of the importance", fontsize=9, loc="left")
    if title:
        figure.suptitle(title, fontsize=11, parse_math=False)
    return figure


def query(
    image: Tensor, rows: Sequence[Sequence[tuple[str, LayerRecord]]], point: tuple[float, float], index: int = 0,
    title: str = "", *, heads: str | Sequence[int] = "mean", count: int = 30,
) -> Figure:  # fmt: skip
    """Figure 7: the keys of highest attention for the query at a chosen point.

    Args:
        image: (3, H, W), values in [0, 1], as the networks saw it.
        rows: labels and layers that :func:`deformvit.record` recorded, of any kind of attention; the
            layers of a row stand side by side, as those of several models.
        point: (y, x) in pixels of the image; each layer's query nearest to it is shown.
        index: which image of the recorded batch.
        title: drawn above.
        heads: "mean" of all heads, "each" head, or numbers of heads counted from 1; a panel for each.
        count: how many keys to draw in a panel.

    Raises:
        ValueError: no layers, a point that is not on the image, or no such head.
    """
    hw = (image.shape[-2], image.shape[-1])
    if not any(rows):
        raise UserError("no attention layers were recorded")
    if count < 1:
        raise UserError(f"count must be at least 1, got {count}")
    if not (0 <= point[0] <= hw[0] and 0 <= point[1] <= hw[1]):
        raise UserError(f"point must be on the image of {hw[0]} x {hw[1]} pixels, got {point}")
    common.check_index([layer for row in rows for _, layer in row], index)
    lines = [
        [panel for name, layer in row for panel in _panels(name, layer, point, hw, index, heads, count)] for row in rows
    ]
    margin = common.margin_for([panel.places for line in lines for panel in line], hw)
    cols = max(len(line) for line in lines)
    width = 3.4 if cols < 4 else 2.4
    figure = Figure(
        figsize=(width * cols + 0.2, (common.panel_height(hw, width) + 0.35) * len(rows) + 0.5), layout="constrained"
    )
    axes = figure.subplots(len(rows), cols, squeeze=False)
    picture = 0.6 * common.picture(image)
    for row, line in zip(axes, lines, strict=True):
        for axis in row[len(line) :]:
            axis.set_axis_off()
        for axis, panel in zip(row, line, strict=False):
            common.show(axis, picture, margin)
            axis.scatter(
                panel.places[:, 1], panel.places[:, 0], s=190 * (panel.weights / panel.weights.max()).numpy(),
                facecolor=[common.COLOURS[int(g) % len(common.COLOURS)] for g in panel.groups],
                edgecolor="black", linewidth=0.4, alpha=0.8,
            )  # fmt: skip
            _star(axis, panel.layer, panel.layer.query_at(point, hw), hw)
            share = 100 * float(panel.weights.sum())
            axis.set_title(
                f"{panel.name}\n{panel.head}: {len(panel.weights)} keys, {share:.0f} % of its attention",
                fontsize=7, loc="left", parse_math=False,
            )  # fmt: skip
    if title:
        figure.suptitle(title, fontsize=11, parse_math=False)
    return figure


@dataclass(frozen=True)
class _Panel:
    name: str
    layer: LayerRecord
    head: str
    places: Tensor
    """(K, 2) pixels of the keys, weakest first."""
    weights: Tensor
    groups: np.ndarray
    """Which of the layer's sets of keys each belongs to."""


def _panels(
    name: str, layer: LayerRecord, point: tuple[float, float], hw: tuple[int, int], index: int,
    heads: str | Sequence[int], count: int,
) -> list[_Panel]:  # fmt: skip
    found = layer.attend([layer.query_at(point, hw)], index)
    places, weights = layer.index_pixels(found.keys[:, 0].cpu(), hw), found.weights[:, 0].cpu()
    return [
        _Panel(
            name,
            layer,
            "all heads" if head is None else f"head {head + 1}",
            *_best(places, weights, layer.key_sets, head, count),
        )
        for head in _chosen_heads(heads, layer.num_heads)
    ]


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
) -> tuple[Tensor, Tensor, np.ndarray]:
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
    return places[best], weights[best], number[best].numpy()


def _star(axis: Axes, layer: LayerRecord, query_: int, hw: tuple[int, int]) -> None:
    width = layer.feature_hw[1]
    y, x = layer.index_pixels(torch.tensor([query_ // width, query_ % width], dtype=torch.float32), hw).tolist()
    axis.scatter([x], [y], s=130, marker="*", facecolor="white", edgecolor="black", linewidth=0.8, zorder=5)
