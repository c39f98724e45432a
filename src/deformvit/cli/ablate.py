"""``deformvit ablate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from deformvit.errors import UserError


def run(
    number: tyro.conf.Positional[Literal["main", "6", "7", "fig4"]],
    /,
    data: Annotated[str, tyro.conf.arg(aliases=["-d"])],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/ablate"),
    seeds: int = 3,
    epochs: int = 20,
    rows: tuple[int, ...] = (),
    workers: int = 0,
    device: str = "auto",
) -> None:
    """Train every row of a table of the paper at dat_nano's size, with several seeds, and print the results.

    Finished runs in the output folder are not trained again, interrupted ones are resumed. After every run the table
    and a picture of the curves are written there; `table` shows the table again.

    Args:
        number: `main`: DAT beside Swin, PVT, Deformable DETR's attention and DeiT; or a table or figure of the paper.
        data: images of 32 pixels such as CIFAR-10: a folder or parquet files, as in training.
        output: folder; runs are in one below it for each table and number of epochs.
        seeds: runs of every row.
        epochs: of every run.
        rows: train only these rows, counted from 1, so that several processes or machines share a table.
        workers: loader processes.
        device: a torch device; auto takes the GPU if there is one.
    """
    from deformvit import recipes
    from deformvit.paper import comparison, experiments
    from deformvit.paper.recorded import seed_runs
    from deformvit.paper.tables import NANO_TABLES

    if seeds < 1 or epochs < 1:
        raise UserError(f"seeds and epochs must be at least 1, got {seeds} and {epochs}")
    table = NANO_TABLES[number]
    unknown = [row for row in rows if not 1 <= row <= len(table.rows)]
    if unknown:
        raise UserError(f"rows must be from 1 to {len(table.rows)} for {number}, got {unknown[0]}")
    base = recipes.nano_cifar10(epochs)
    base.data.root, base.data.workers, base.run.device = data, workers, device
    folder = output / f"{number}-{epochs}-epochs"
    runs = seed_runs(table, seeds, folder)
    chosen = [table.rows[row - 1] for row in rows] or table.rows
    for _ in experiments.train(runs, base, chosen, _report):
        comparison.write_comparison(table, runs, base, folder)
    print(comparison.write_comparison(table, runs, base, folder))


def _report(text: str) -> None:
    print(f"deformvit: {text}", file=sys.stderr)
