"""The paper's comparisons as runs: every row of a table with every seed, what is finished is not run again."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import timm

from deformvit.complexity import measure
from deformvit.config import Config
from deformvit.engine import loop
from deformvit.recipes.ablations import Row, Table
from deformvit.recipes.nano import TABLES
from deformvit.storage import write_atomically
from deformvit.tasks.classification import Classification

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Cell:
    """A row trained with a seed."""

    row: Row
    seed: int
    folder: Path

    def epochs(self) -> list[dict[str, float]]:
        """Metrics of the epochs so far."""
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def top1(self, epochs: int) -> float | None:
        """Accuracy after the last epoch, not the best one; None before that."""
        lines = self.epochs()
        return lines[-1]["top1"] if lines and lines[-1]["epoch"] == epochs - 1 else None


def cells(table: Table, seeds: int, output: Path) -> list[Cell]:
    """Every row with every seed; all rows with the first seed come first."""
    names = [_slug(row.label) for row in table.rows]
    return [
        Cell(row, seed, output / f"{name}-seed{seed}")
        for seed in range(seeds)
        for row, name in zip(table.rows, names, strict=True)
    ]


def run(
    number: str, base: Config, seeds: int, output: Path, report: Callable[[str], None] = print,
    rows: Sequence[int] = (),
) -> str:  # fmt: skip
    """Train what is not finished yet; returns the table.

    After every run the table and its curves are written beside the runs, where ``deformvit table`` finds them.

    Args:
        number: key of :data:`deformvit.recipes.nano.TABLES`.
        base: the recipe, all but the model.
        seeds: runs of every row.
        output: folder of the runs; an unfinished run in it is resumed.
        report: told what is trained.
        rows: train only these, counted from 1; the table holds all that is finished.
    """
    table = TABLES[number]
    todo = cells(table, seeds, output)
    for place, cell in enumerate(todo, 1):
        if cell.top1(base.run.epochs) is not None or (rows and table.rows.index(cell.row) + 1 not in rows):
            continue
        report(f"{place} of {len(todo)}: {cell.row.label}, seed {cell.seed}")
        config = configured(cell, base)
        loop.fit(Classification(config), config)
        write(table, todo, base, output)
    return write(table, todo, base, output)


def write(table: Table, done: list[Cell], base: Config, output: Path) -> str:
    """``table.md`` and ``curves.png`` of the runs so far; returns the table."""
    text = render(table, done, base)
    # Processes that share the rows may come here together.
    write_atomically(output / "table.md", lambda path: path.write_text(text + "\n"), several=True)
    figure = curves(table, done)
    write_atomically(output / "curves.png", lambda path: figure.savefig(path, dpi=150, format="png"), several=True)
    return text


def configured(cell: Cell, base: Config) -> Config:
    """The run of a cell: the recipe with the row's model and the cell's seed and folder."""
    config = deepcopy(base)
    config.model.name = cell.row.model
    config.model.args = {
        name: value if isinstance(value, str) else repr(value) for name, value in cell.row.args.items()
    }
    config.run.seed, config.run.output, config.run.resume = cell.seed, cell.folder, True
    return config


def render(table: Table, done: list[Cell], base: Config) -> str:
    """Mean, deviation and each seed's accuracy after the last epoch, with parameters and multiply-adds, as Markdown."""
    lines = [
        f"## {table.title}", "",
        f"{Path(base.data.root).name}, {base.run.epochs} epochs, top-1 after the last one.", "",
        "| | params (M) | multiply-adds (M) | top-1 | deviation | seeds |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in table.rows:
        size = cost(row, base.data.img_size)
        found = [cell.top1(base.run.epochs) for cell in done if cell.row is row]
        values = [value for value in found if value is not None]
        mean = f"{statistics.mean(values):.2f}" if values else "-"
        spread = f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-"
        each = ", ".join(f"{value:.2f}" for value in values) or "-"
        lines.append(f"| {row.label} | {size[0] / 1e6:.2f} | {size[1] / 1e6:.1f} | {mean} | {spread} | {each} |")
    return "\n".join([*lines, *(["", table.note] if table.note else [])])


def cost(row: Row, size: int) -> tuple[int, int]:
    """Parameters and multiply-adds of a row's model with ten classes."""
    found = measure(
        lambda: timm.create_model(row.model, num_classes=10, **row.args), (3, size, size), activations=False
    )
    return found.parameters, found.multiply_adds


NEAR = 5.0
"""Points of accuracy behind the best row from which a row is left out of the second panel of :func:`curves`."""


def curves(table: Table, done: list[Cell]) -> Figure:
    """Accuracy by epoch, the mean of the seeds as a line and their range as a band; beside it every finished run.

    The second panel leaves out rows far behind the best, beside which the others could not be told apart.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes, ends = figure.subplots(1, 2, width_ratios=(3, 2))
    final: list[tuple[list[float], str]] = []
    longest = max((len(cell.epochs()) for cell in done), default=0)
    for row in table.rows:
        runs: list[dict[float, float]] = []
        for cell in done:
            if cell.row is row and (lines := cell.epochs()):
                runs.append({line["epoch"] + 1: line["top1"] for line in lines if "top1" in line})
        reached = max((max(run, default=0) for run in runs), default=0)
        runs = [run for run in runs if reached in run]  # one that has just begun would cut the others short
        if not runs:
            continue
        epochs = sorted(set.intersection(*(set(run) for run in runs)))
        low, high = ([pick(run[e] for run in runs) for e in epochs] for pick in (min, max))
        (line,) = axes.plot(epochs, [statistics.mean(run[e] for run in runs) for e in epochs], label=row.label)
        axes.fill_between(epochs, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        finished = [run[longest] for run in runs if longest in run]
        if finished:
            final.append((finished, line.get_color()))
    axes.set(xlabel="epoch", ylabel="top-1 (%)", title=table.title)
    axes.title.set_fontsize("medium")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(loc="lower right", fontsize="small")
    best = max((statistics.mean(values) for values, _ in final), default=0.0)
    for place, (values, colour) in enumerate(final):
        mean = statistics.mean(values)
        if best - mean < NEAR:
            ends.plot([mean], [place], "|", color=colour, markersize=22, markeredgewidth=2)
            ends.plot(values, [place] * len(values), "o", color=colour, alpha=0.6, markersize=6)
    ends.set(xlabel="top-1 (%)", title=f"after epoch {longest}: every seed, and the mean", yticks=[])
    ends.title.set_fontsize("medium")
    ends.margins(0.1, 0.15)
    ends.invert_yaxis()
    ends.grid(axis="x", alpha=0.3)
    return figure


def _slug(label: str) -> str:
    words = "".join(letter if letter.isalnum() else " " for letter in label.lower()).split()
    return "-".join(words)


def progress(text: str) -> None:
    """Tells the user on the error stream."""
    print(f"deformvit: {text}", file=sys.stderr)
