"""Published beside measured values as Markdown, for ``deformvit table``."""

from __future__ import annotations

from pathlib import Path

from deformvit.errors import UserError
from deformvit.paper.comparison import comparison_files
from deformvit.paper.complexity import Complexity
from deformvit.paper.recorded import RecordedRun, recorded_runs
from deformvit.paper.rows import architecture, row_complexity, train_options
from deformvit.paper.tables import TABLES, Row, Table


def render(number: str, runs: Path | None = None, configurations: bool = False) -> str:
    """A table as Markdown, and below it what ``deformvit ablate`` measured of it at dat_nano's size.

    Args:
        number: key of :data:`~deformvit.paper.tables.TABLES`, or ``main``, which only ``deformvit ablate`` measures.
        runs: folder of runs, shown at the row whose configuration they have if they are on the table's data set.
        configurations: list the options of ``deformvit train`` for every row.

    Raises:
        UserError: an unknown table, or ``main`` without results.
    """
    compared = [] if runs is None else [path.read_text().strip() for path in comparison_files(number, runs)]
    if number == "main":
        if not compared:
            raise UserError(f"{runs}: no results of `deformvit ablate main --data cifar10` in it")
        return "\n\n".join(compared)
    if number not in TABLES:
        raise UserError(f"no table {number!r}; expected one of {', '.join(sorted(TABLES))} or main")
    table = TABLES[number]
    return "\n\n".join([render_table(table, [] if runs is None else recorded_runs(runs), configurations), *compared])


def render_table(table: Table, runs: list[RecordedRun], configurations: bool = False) -> str:
    """Published values beside what is counted here and what recorded runs on the table's data set reached.

    Args:
        table: the table.
        runs: recorded runs of any rows and data.
        configurations: as for :func:`render`.
    """
    notes = list(dict.fromkeys(row.note for row in table.rows if row.note))
    counted = _count(table)
    lines, shown = [_header(table)], []
    for row in table.rows:
        label = f"{row.label} [{notes.index(row.note) + 1}]" if row.note else row.label
        best = _best(row, table, runs)
        if best:
            run, epoch = best
            shown.append(f"{row.label}: {run.folder.name}, epoch {epoch['epoch'] + 1} of {len(run.epochs)}")
        results = _results(row, table, best[1] if best else {})
        lines.append([cell or "-" for cell in (label, *_costs(row, table, counted[architecture(row)]), *results)])
    paragraphs = [
        [f"## {table.title}"],
        _aligned(lines),
        [
            f"Results are the published ones on {table.data.name}. Where a run on it is recorded, its best evaluation "
            "is shown, with the published value in brackets."
        ],
        [table.note] if table.note else [],
        [f"[{i}] {note}" for i, note in enumerate(notes, 1)],
        ["Recorded runs shown above:", *(f"- {line}" for line in shown)] if shown else [],
        _on_other_data(table, runs),
        [_configuration(row) for row in table.rows if row.recipe or row.model] if configurations else [],
    ]
    return "\n\n".join("\n".join(paragraph) for paragraph in paragraphs if paragraph)


def _header(table: Table) -> list[str]:
    return [
        "configuration", "params M", "published", "mult-adds G", *(["with r = 2"] if table.strided_keys else []),
        "published", *(["activations MiB"] if table.activations else []), *(column.label for column in table.columns),
    ]  # fmt: skip


def _count(table: Table) -> dict[str, list[Complexity | None]]:
    """The cost of each architecture of a table, and with a strided key grid if the table shows that."""
    counted: dict[str, list[Complexity | None]] = {}
    for row in table.rows:
        key = architecture(row)
        if key not in counted:
            counted[key] = [row_complexity(row, table, activations=table.activations)]
            if table.strided_keys:
                counted[key].append(row_complexity(row, table, strided=True))
    return counted


def _costs(row: Row, table: Table, counted: list[Complexity | None]) -> list[str]:
    """Parameters and multiply-adds, each followed by the published value, and activations."""
    plain = counted[0]
    parameters = f"{plain.parameters / 1e6:.2f}" if plain else ""
    cells = [parameters, row.params, *map(_billions, counted), row.mult_adds]
    if table.activations:
        cells.append(f"{plain.activations / 2**20:.1f}" if plain and plain.activations is not None else "")
    return cells


def _billions(cost: Complexity | None) -> str:
    """Billions of multiply-adds, from 100 on without decimals."""
    if cost is None:
        return ""
    billions = cost.multiply_adds / 1e9
    return f"{billions:.2f}" if billions < 100 else f"{billions:.0f}"


def _best(row: Row, table: Table, runs: list[RecordedRun]) -> tuple[RecordedRun, dict[str, float]] | None:
    """The run of a row on the table's data set with the best evaluation, and that evaluation."""
    metric = table.columns[0].metric
    evaluated = [
        (run, best)
        for run in runs
        if run.is_run_of(row) and table.data.is_root(run.root) and (best := run.best(metric)) is not None
    ]
    return max(evaluated, key=lambda pair: pair[1][metric], default=None)


def _results(row: Row, table: Table, best: dict[str, float]) -> list[str]:
    """A cell for every column: the published value, or the measured one with the published one in brackets."""
    cells = []
    for i, column in enumerate(table.columns):
        published = row.results[i] if i < len(row.results) else ""
        digits = len(published.partition(".")[2]) or 1
        measured = f"{best[column.metric]:.{digits}f} ({published or '-'})" if column.metric in best else ""
        cells.append(measured or published)
    return cells


def _on_other_data(table: Table, runs: list[RecordedRun]) -> list[str]:
    """A line for every run of a row that is on other data, and so has no place in the columns."""
    other = [
        f"- {row.label}: {run.folder.name} on {Path(run.root).name}"
        for row in table.rows
        for run in runs
        if run.is_run_of(row) and not table.data.is_root(run.root)
    ]
    return [f"Runs on other data than {table.data.name}, not shown above:", *other] if other else []


def _configuration(row: Row) -> str:
    return f"{row.label}: {'deformvit train ' if row.recipe else ''}{train_options(row)}"


def _aligned(rows: list[list[str]]) -> list[str]:
    """A Markdown table that is a table in a terminal too; the first row is the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    cells = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    cells.insert(1, ["-" * width for width in widths])
    return ["| " + " | ".join(row) + " |" for row in cells]
