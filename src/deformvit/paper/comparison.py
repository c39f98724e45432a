"""Results of ``deformvit ablate``: a table of accuracies over seeds, and the curves of the runs."""

from __future__ import annotations

import statistics
from pathlib import Path

from deformvit.config import ClassificationConfig
from deformvit.paper.recorded import SeedRun
from deformvit.paper.rows import row_complexity
from deformvit.paper.tables import Table
from deformvit.storage import write_atomically

TABLE_FILE, CURVES_FILE = "table.md", "curves.png"
"""What :func:`write_comparison` writes beside the runs."""


def render_comparison(table: Table, runs: list[SeedRun], base: ClassificationConfig) -> str:
    """Mean, deviation and each seed's accuracy after the last epoch, with parameters and multiply-adds."""
    lines = [
        f"## {table.title}", "",
        f"{Path(base.data.root).name}, {base.run.epochs} epochs, top-1 after the last one.", "",
        "| | params (M) | multiply-adds (M) | top-1 | deviation | seeds |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in table.rows:
        cost = row_complexity(row, table)
        assert cost is not None
        accuracies = [run.final_top1(base.run.epochs) for run in runs if run.row is row]
        values = [value for value in accuracies if value is not None]
        mean = f"{statistics.mean(values):.2f}" if values else "-"
        deviation = f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-"
        seeds = ", ".join(f"{value:.2f}" for value in values) or "-"
        size = f"{cost.parameters / 1e6:.2f} | {cost.multiply_adds / 1e6:.1f}"
        lines.append(f"| {row.label} | {size} | {mean} | {deviation} | {seeds} |")
    return "\n".join([*lines, *(["", table.note] if table.note else [])])


def write_comparison(table: Table, runs: list[SeedRun], base: ClassificationConfig, folder: Path) -> str:
    """Write the table and the curves of the runs so far into ``folder``; returns the table."""
    from deformvit.figures.curves import comparison  # matplotlib is not needed to print tables

    text = render_comparison(table, runs, base)
    # Processes that share the rows may write at the same time.
    write_atomically(folder / TABLE_FILE, lambda path: path.write_text(text + "\n"), several=True)
    logs = {row.label: [run.epochs() for run in runs if run.row is row] for row in table.rows}
    figure = comparison(logs, base.run.epochs, title=table.title)
    write_atomically(folder / CURVES_FILE, lambda path: figure.savefig(path, dpi=150, format="png"), several=True)
    return text


def comparison_files(number: str, runs: Path) -> list[Path]:
    """The tables of all lengths of training that were written below ``runs/ablate``, or below ``runs`` itself."""
    folders = (runs / "ablate", runs)
    return [path for folder in folders for path in sorted(folder.glob(f"{number}-*-epochs/{TABLE_FILE}"))]
