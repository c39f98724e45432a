"""Confusion matrices: counts by name for few classes; for many a map, and lists of what is mistaken most."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deformvit.errors import UserError

NAMED = 60
"""Classes up to which every cell has its number and every row its name."""

EMPTY = (0.93, 0.93, 0.93)
"""Of rows without images."""


def confusion(
    matrix: Sequence[Sequence[int]] | np.ndarray | torch.Tensor, classes: Sequence[str], title: str = ""
) -> Figure:
    """How many images of each class (rows) were predicted as which class (columns).

    What is right is blue, what is wrong red, darker with its share of the row. Up to :data:`NAMED` classes the cells
    have their numbers and the rows their accuracy; beyond, the worst classes and the most frequent mistakes are listed.

    Args:
        matrix: integers (classes, classes).
        classes: their names.
        title: drawn above.

    Raises:
        UserError: a matrix of another shape, or no classes.
    """
    counts = torch.as_tensor(matrix).cpu().numpy().astype(np.int64)
    if not classes or counts.shape != (len(classes), len(classes)):
        raise UserError(f"expected a matrix {(len(classes), len(classes))} of at least one class, got {counts.shape}")
    names = [_short(name) for name in classes]
    figure = _named(counts, names) if len(classes) <= NAMED else _map(counts, names)
    if title:
        figure.suptitle(title, fontsize=10, parse_math=False, wrap=True)
    return figure


def _named(counts: np.ndarray, names: list[str]) -> Figure:
    size = len(names)
    cell, font = (0.6, 9.0) if size <= 12 else (0.28, 7.5)
    side, longest = max(cell * size, 2.4), 0.0085 * font * max(map(len, names))  # inches
    height = longest * (0.71 if size <= 12 else 1.0)  # of names that are turned
    figure = Figure(figsize=(side + longest + 1.3, side + height + 0.9), layout="constrained")
    axis = figure.subplots()
    colours = _colours(counts, faintest=0.0)
    _show(axis, colours)
    dark = colours @ (0.299, 0.587, 0.114) < 0.55
    for row, column in np.argwhere(counts > 0):
        number = f"{counts[row, column]}"
        axis.text(
            column, row, number, ha="center", va="center", color="white" if dark[row, column] else "black",
            fontsize=font if len(number) < 4 or size <= 12 else font - 2,
        )  # fmt: skip
    axis.set_xticks(range(size), names, rotation=45 if size <= 12 else 90, fontsize=font, parse_math=False)
    if size <= 12:
        for label in axis.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axis.set_yticks(range(size), names, fontsize=font, parse_math=False)
    axis.set_xticks(np.arange(0.5, size - 1), minor=True)
    axis.set_yticks(np.arange(0.5, size - 1), minor=True)
    axis.grid(which="minor", color="white", linewidth=0.8)
    axis.tick_params(which="minor", length=0)
    accuracy = axis.secondary_yaxis("right")
    accuracy.set_yticks(range(size), [_percent(value) for value in _recall(counts)], fontsize=font)
    accuracy.set_ylabel("accuracy of the class")
    accuracy.tick_params(length=0)
    accuracy.spines["right"].set_visible(False)
    return figure


def _map(counts: np.ndarray, names: list[str]) -> Figure:
    size = len(names)
    figure = Figure(figsize=(13, 9.4), layout="constrained")
    axis, beside = figure.subplots(1, 2, width_ratios=(3, 1))
    _show(axis, _colours(counts, faintest=min(size / 3000, 0.4)))  # the smaller a cell, the fainter it looks
    step = -(-size // 60)
    shown = range(0, size, step)
    axis.set_xticks(shown, [names[i] for i in shown], rotation=90, fontsize=6, parse_math=False)
    axis.set_yticks(shown, [names[i] for i in shown], fontsize=6, parse_math=False)
    beside.set_axis_off()
    recall = _recall(counts)
    worst = [i for i in np.argsort(np.nan_to_num(recall, nan=np.inf), kind="stable") if recall[i] < 100][:25]
    lines = [f"{_percent(recall[i]):>6}  {names[i]}" for i in worst]
    _list(beside, 1.0, "lowest accuracy", lines)
    wrong = counts * (1 - np.eye(size, dtype=np.int64))
    most = [divmod(int(i), size) for i in np.argsort(-wrong, axis=None, kind="stable")[:25]]
    lines = [f"{wrong[i, j]:>6}  {names[i]} as {names[j]}" for i, j in most if wrong[i, j]]
    _list(beside, 0.48, "most frequent mistakes (images)", lines)
    return figure


def _list(axis: Axes, top: float, heading: str, lines: list[str]) -> None:
    axis.text(0, top, heading, fontsize=9, fontweight="bold", va="top", transform=axis.transAxes)
    axis.text(
        0, top - 0.025, "\n".join(lines) or "none", fontsize=7.5, family="monospace", va="top", linespacing=1.25,
        transform=axis.transAxes, parse_math=False,
    )  # fmt: skip


def _show(axis: Axes, colours: np.ndarray) -> None:
    axis.imshow(colours, interpolation="nearest", aspect="auto")  # nearly square; the layout is exact only so
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")


def _colours(counts: np.ndarray, faintest: float) -> np.ndarray:
    """RGB of the cells, from 0 to 1; the shade of cells that are not zero begins at ``faintest``."""
    images = counts.sum(1, keepdims=True)
    share = counts / np.maximum(images, 1)
    # A square root, or a mistake made with a few of a hundred images would be invisible.
    shade = faintest + (0.85 - faintest) * np.sqrt(share)
    blue, red = (matplotlib.colormaps[name](shade)[..., :3] for name in ("Blues", "Reds"))
    colours = np.where(np.eye(len(counts), dtype=bool)[..., None], blue, red)
    colours[counts == 0] = 1
    colours[images[:, 0] == 0] = EMPTY
    return colours


def _recall(counts: np.ndarray) -> np.ndarray:
    """Percent of the images of each class that were recognised; nan without images."""
    images = counts.sum(1)
    return np.where(images > 0, 100 * counts.diagonal() / np.maximum(images, 1), np.nan)


def _percent(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.0f} %"


def _short(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= 24 else name[:23] + "…"
