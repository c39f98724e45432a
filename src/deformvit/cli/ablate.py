"""``deformvit ablate``."""

from __future__ import annotations

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
    """Train every row of a table of the paper at dat_nano's size, with several seeds, and print what came of it.

    What is finished in the output folder is not trained again, what is unfinished goes on. The table is written there
    too, with the curves as a picture; `table` shows it again.

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
    from deformvit.paper import ablate as experiments
    from deformvit.recipes.nano import TABLES

    if seeds < 1 or epochs < 1:
        raise UserError(f"seeds and epochs must be at least 1, got {seeds} and {epochs}")
    count = len(TABLES[number].rows)
    wrong = [row for row in rows if not 1 <= row <= count]
    if wrong:
        raise UserError(f"rows: there is no row {wrong[0]}; {number} has {count}")
    base = recipes.nano_cifar10(epochs)
    base.data.root, base.data.workers, base.run.device = data, workers, device
    print(experiments.run(number, base, seeds, output / f"{number}-{epochs}-epochs", experiments.progress, rows))
