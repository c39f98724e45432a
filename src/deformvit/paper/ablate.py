"""The paper's comparisons as runs: every row of a table with every seed, what is finished is not run again."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import timm

from deformvit.config import ClassificationConfig
from deformvit.engine import loop
from deformvit.paper.complexity import measure
from deformvit.recipes.ablations import Row, Table
from deformvit.recipes.nano import TABLES
from deformvit.storage import write_atomically
from deformvit.tasks.classification import Classification


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
    number: str, base: ClassificationConfig, seeds: int, output: Path, report: Callable[[str], None] = print,
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


def write(table: Table, done: list[Cell], base: ClassificationConfig, output: Path) -> str:
    """``table.md`` and ``curves.png`` of the runs so far; returns the table."""
    from deformvit.figures.curves import comparison  # matplotlib is not needed to train

    text = render(table, done, base)
    # Processes that share the rows may come here together.
    write_atomically(output / "table.md", lambda path: path.write_text(text + "\n"), several=True)
    logs = {row.label: [cell.epochs() for cell in done if cell.row is row] for row in table.rows}
    figure = comparison(logs, base.run.epochs, title=table.title)
    write_atomically(output / "curves.png", lambda path: figure.savefig(path, dpi=150, format="png"), several=True)
    return text


def configured(cell: Cell, base: ClassificationConfig) -> ClassificationConfig:
    """The run of a cell: the recipe with the row's model and the cell's seed and folder."""
    config = deepcopy(base)
    config.model.name = cell.row.model
    config.model.args = {
        name: value if isinstance(value, str) else repr(value) for name, value in cell.row.args.items()
    }
    config.run.seed, config.run.output, config.run.resume = cell.seed, cell.folder, True
    return config


def render(table: Table, done: list[Cell], base: ClassificationConfig) -> str:
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


def _slug(label: str) -> str:
    words = "".join(letter if letter.isalnum() else " " for letter in label.lower()).split()
    return "-".join(words)


def progress(text: str) -> None:
    """Tells the user on the error stream."""
    print(f"deformvit: {text}", file=sys.stderr)
