"""The paper's tables with published and measured values side by side: ``deformvit table``.

Parameters, multiply-adds and activation memory (what the backward pass of one image keeps, float32, attention
materialised) are counted on the spot; top-1 is what a recorded run reached.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import timm

from deformvit.errors import UserError
from deformvit.paper import systems as system_tables
from deformvit.paper.complexity import Complexity, measure
from deformvit.recipes.ablations import TABLES, Row
from deformvit.recipes.published import DENSE_TABLES

HEADER = (
    "configuration", "params M", "published", "mult-adds G", "published", "activations MiB", "top-1 published",
    "measured",
)  # fmt: skip


def cost(row: Row) -> Complexity | None:
    """What one image of the model's nominal size costs; None for a row that has no model here."""
    if not row.model:
        return None
    return measure(lambda: timm.create_model(row.model, **row.args), timm.get_pretrained_cfg(row.model).input_size)


def differs(measured: float, published: str) -> bool:
    """Whether a value does not round to the published digits."""
    if not published:
        return False
    digits = len(published.partition(".")[2])
    return f"{measured:.{digits}f}" != published


def render(number: str, runs: Path | None = None, configurations: bool = False) -> str:
    """A table as Markdown, notes below it, and what ``deformvit ablate`` found of it at dat_nano's size.

    Args:
        number: key of :data:`~deformvit.recipes.ablations.TABLES`, or ``main``, which is of ``deformvit ablate`` alone.
        runs: folder of runs, whose best top-1 is shown at the row that has the run's model and arguments.
        configurations: list the options of ``deformvit train`` that every row is.

    Raises:
        UserError: an unknown table, or ``main`` without results.
    """
    found = [] if runs is None else [path.read_text().strip() for path in ablated(number, runs)]
    if number == "main":
        if not found:
            raise UserError(f"{runs}: no results of `deformvit ablate main --data cifar10` in it")
        return "\n\n".join(found)
    return "\n\n".join([_published(number, runs, configurations), *found])


def ablated(number: str, runs: Path) -> list[Path]:
    """The tables that ``deformvit ablate`` wrote, in ``runs/ablate`` or in the folder itself."""
    folders = (runs / "ablate", runs)
    return [path for folder in folders for path in sorted(folder.glob(f"{number}-*-epochs/table.md"))]


def _published(number: str, runs: Path | None, configurations: bool) -> str:
    """The table at the paper's size."""
    if number in DENSE_TABLES:
        dense = DENSE_TABLES[number]
        text = ["", *(f"deformvit train {row.recipe}" for row in dense.rows if row.recipe)] if configurations else []
        note = "Published accuracies; of recorded runs the measured ones, with the published in brackets."
        aligned = _aligned(system_tables.rows(number, runs))
        lines = [f"## {dense.title}", "", *aligned, "", f"{note} {dense.note}", *text]
        return "\n".join(lines)
    if number not in TABLES:
        raise UserError(f"no table {number!r}; there are {', '.join(sorted([*TABLES, *DENSE_TABLES]))}")
    table = TABLES[number]
    recorded = _recorded(runs) if runs is not None else []
    body, notes = [], []
    for row in table.rows:
        measured = cost(row)
        cells = [row.label, "", row.params, "", row.flops, "", row.top1, _top1(row, recorded)]
        if measured is not None:
            millions, billions = measured.parameters / 1e6, measured.multiply_adds / 1e9
            mark = ""
            if row.note:
                if row.note not in notes:
                    notes.append(row.note)
                mark = f" [{notes.index(row.note) + 1}]"
            cells[0] += mark
            cells[1], cells[3] = f"{millions:.2f}", f"{billions:.2f}"
            cells[5] = f"{(measured.activations or 0) / 2**20:.1f}"
        body.append([cell or "-" for cell in cells])
    lines = [f"## {table.title}", "", *_aligned([list(HEADER), *body])]
    if table.note:
        lines += ["", table.note]
    lines += ["", *(f"[{i}] {note}" for i, note in enumerate(notes, 1))] if notes else []
    if configurations:
        lines += ["", *(f"{row.label}: {arguments(row)}" for row in table.rows if row.model)]
    return "\n".join(lines)


def arguments(row: Row) -> str:
    """The row's configuration as options of ``deformvit train``."""
    if not row.args:
        return f"--model.name {row.model}"
    values = " ".join(f"{name} {_quote(value)}" for name, value in row.args.items())
    return f"--model.name {row.model} --model.args {values}"


def _quote(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return f'"{text}"' if any(letter in text for letter in " ()'") else text


def _aligned(rows: list[list[str]]) -> list[str]:
    """A Markdown table that is a table in a terminal too; the first row is the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    cells = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    cells.insert(1, ["-" * width for width in widths])
    return ["| " + " | ".join(row) + " |" for row in cells]


def _plain(value: Any) -> Any:
    """Lists as tuples, whole floats as numbers: what equal configurations have in common."""
    return tuple(_plain(item) for item in value) if isinstance(value, list | tuple) else value


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _recorded(runs: Path) -> list[tuple[str, dict[str, Any], float, str]]:
    """Model, arguments, best top-1 and what it was trained on, of every run in a folder."""
    found = []
    for path in sorted(runs.glob("*/config.json")):
        try:
            config = json.loads(path.read_text())
            epochs = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
            best = max(epoch["top1"] for epoch in epochs if "top1" in epoch)
            model, data = config["model"], Path(config["data"]["root"]).name
            args = {name: _plain(_literal(value)) for name, value in model["args"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a run that has not got that far, or a folder that is no run
        found.append((model["name"], args, best, f"{data}, {len(epochs)} epochs"))
    return found


def _top1(row: Row, recorded: list[tuple[str, dict[str, Any], float, str]]) -> str:
    mine = {name: _plain(value) for name, value in row.args.items()}
    values = [f"{best:.1f} ({where})" for model, args, best, where in recorded if (model, args) == (row.model, mine)]
    return "; ".join(values)
