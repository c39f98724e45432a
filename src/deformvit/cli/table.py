"""``deformvit table``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import tyro


def run(
    number: tyro.conf.Positional[Literal["2", "3", "4", "5", "6", "7", "8", "9", "fig4", "neighbours", "main"]],
    /,
    runs: Path = Path("runs"),
    configurations: bool = False,
) -> None:
    """Print a table of the paper with published and measured values side by side, and what `ablate` measured of it.

    Args:
        number: of the table; fig4 is Figure 4, neighbours are the models that the paper compares with, main is what
            `ablate main` measured.
        runs: folder of training runs. A row shows the best evaluation of the runs that have its configuration and
            whose data.root is a folder named after the table's data set (imagenet, coco, ade20k). Results of `ablate`
            are looked for in it and in its folder ablate.
        configurations: list the options of `deformvit train` for every row.
    """
    from deformvit.paper.render import render

    print(render(number, runs, configurations))
