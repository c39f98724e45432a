"""Training logs of several runs side by side, and of rows of a table with several seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deformvit.errors import UserError
from deformvit.runs import METRICS, read_metrics

MAIN = {"top1": "top-1 (%)", "mask_AP": "mask AP", "box_AP": "box AP", "mIoU": "mIoU"}
"""What a run is judged by, in the order of preference, and the axis' label."""

NEAR = 5.0
"""Points behind the best row from which a row is left out of the second panel of :func:`comparison`."""


def read_log(folder: Path) -> list[dict[str, float]]:
    """The epochs that a run has logged (``metrics.jsonl``), for :func:`curves`.

    Raises:
        UserError: the folder is not a run's, or no epoch is logged yet.
    """
    if not (folder / METRICS).is_file():
        raise UserError(f"{folder / METRICS}: no such file; curves are drawn of folders that `deformvit train` wrote")
    epochs = read_metrics(folder)
    if not epochs:
        raise UserError(f"{folder / METRICS}: holds no epochs yet")
    return epochs


def curves(runs: Mapping[str, Sequence[Mapping[str, float]]], title: str = "") -> Figure:
    """Losses and, in a second panel for every kind of task, what the runs are judged by; by epoch.

    Args:
        runs: names of the runs and the lines of their logs (:func:`read_log`).
        title: drawn above.

    Raises:
        ValueError: no runs.
    """
    if not runs:
        raise UserError("no runs were given")
    judged = {name: next((key for key in MAIN if any(key in line for line in log)), None) for name, log in runs.items()}
    panels = [None, *(key for key in MAIN if key in judged.values())]
    figure = Figure(figsize=(5.2 * len(panels), 4.0), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, key in zip(axes, panels, strict=True):
        for number, (name, log) in enumerate(runs.items()):
            colour = f"C{number % 10}"
            if key is None:
                _line(axis, log, "train_loss", name, colour, "-")
                _line(axis, log, "loss", "", colour, "--")
            elif judged[name] == key:
                _line(axis, log, key, name, colour, "-")
        axis.set(xlabel="epoch", ylabel="loss" if key is None else MAIN[key])
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize="small")
    dashed = any(line.get_linestyle() == "--" for line in axes[0].lines)
    axes[0].set_title("training" + (" (dashed: validation)" if dashed else ""), fontsize=9, loc="left")
    if title:
        figure.suptitle(title, fontsize=11, parse_math=False)
    return figure


def comparison(
    rows: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], epochs: int, key: str = "top1", title: str = ""
) -> Figure:
    """Rows that were trained with several seeds: by epoch, and beside it every run that reached the last epoch.

    On the left the mean of a row's seeds is a line, their range a band. On the right rows far behind the best
    (``NEAR``) are left out, as the others could not be told apart beside them.

    Args:
        rows: names of the rows, and the lines of the logs of each one's runs.
        epochs: of a run that is finished.
        key: what is drawn, one of ``MAIN``.
        title: of the first panel.
    """
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    by_epoch, last = figure.subplots(1, 2, width_ratios=(3, 2))
    final: dict[str, list[float]] = {}
    for number, (name, logs) in enumerate(rows.items()):
        colour = f"C{number % 10}"
        runs = [{int(line["epoch"]) + 1: line[key] for line in log if key in line} for log in logs]
        _band(by_epoch, [run for run in runs if run], name, colour)
        if finished := [run[epochs] for run in runs if epochs in run]:
            final[colour] = finished
    by_epoch.set_xlabel("epoch")
    by_epoch.set_ylabel(MAIN[key])
    by_epoch.set_title(title, fontsize="medium")
    by_epoch.xaxis.set_major_locator(MaxNLocator(integer=True))
    by_epoch.grid(alpha=0.3)
    if by_epoch.lines:
        by_epoch.legend(loc="lower right", fontsize="small")
    _ends(last, final)
    last.set_xlabel(MAIN[key])
    last.set_title(f"after epoch {epochs}: every seed, and the mean", fontsize="medium")
    return figure


def _band(axes: Axes, runs: Sequence[Mapping[int, float]], name: str, colour: str) -> None:
    reached = max((max(run) for run in runs), default=0)
    runs = [run for run in runs if reached in run]  # one that has just begun would cut the others short
    if not runs:
        return
    epochs = sorted(set.intersection(*(set(run) for run in runs)))
    low, mean, high = ([pick(run[e] for run in runs) for e in epochs] for pick in (min, statistics.mean, max))
    axes.plot(epochs, mean, color=colour, label=name)
    axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)


def _ends(axes: Axes, final: Mapping[str, Sequence[float]]) -> None:
    best = max((statistics.mean(values) for values in final.values()), default=0.0)
    for place, (colour, values) in enumerate(final.items()):
        mean = statistics.mean(values)
        if best - mean < NEAR:
            axes.plot([mean], [place], "|", color=colour, markersize=22, markeredgewidth=2)
            axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.6, markersize=6)
    axes.set_yticks([])
    axes.margins(0.1, 0.15)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)


def _line(axis: object, log: Sequence[Mapping[str, float]], key: str, name: str, colour: str, style: str) -> None:
    found = [(line["epoch"] + 1, line[key]) for line in log if key in line and "epoch" in line]
    if found:
        axis.plot(*zip(*found, strict=True), style, marker=".", color=colour, label=name or None)  # type: ignore[attr-defined]
