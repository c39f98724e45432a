"""Training logs of several runs side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deformvit.errors import UserError

MAIN = {"top1": "top-1 (%)", "mask_AP": "mask AP", "box_AP": "box AP", "mIoU": "mIoU"}
"""What a run is judged by, in the order of preference, and the axis' label."""


def read_log(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's ``metrics.jsonl``, one an epoch or evaluation.

    Raises:
        UserError: there is none, or it holds no lines that can be read.
    """
    path = folder / "metrics.jsonl" if folder.is_dir() else folder
    if not path.is_file():
        raise UserError(f"{path}: no such file; curves are drawn of folders that `deformvit train` wrote")
    lines = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            lines.append({str(key): value for key, value in json.loads(line).items()})
        except (ValueError, AttributeError) as error:
            raise UserError(f"{path}, line {number}: not a line of a training log ({error})") from error
    if not lines:
        raise UserError(f"{path}: holds no epochs yet")
    return lines


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


def _line(axis: object, log: Sequence[Mapping[str, float]], key: str, name: str, colour: str, style: str) -> None:
    found = [(line["epoch"] + 1, line[key]) for line in log if key in line and "epoch" in line]
    if found:
        axis.plot(*zip(*found, strict=True), style, marker=".", color=colour, label=name or None)  # type: ignore[attr-defined]
