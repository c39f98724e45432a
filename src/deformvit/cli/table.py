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
    """Print a table of the paper with published and measured values side by side, and what `ablate` found of it.

    Args:
        number: of the table; fig4 is Figure 4, neighbours the models that the paper measures itself against, main what
            `ablate main` found.
        runs: folder of training runs; a row shows the best top-1 of the runs that have its configuration. Results of
            `ablate` are looked for in it and in its folder ablate.
        configurations: list the options of `deformvit train` that every row is.
    """
    from deformvit.paper import tables

    print(tables.render(number, runs, configurations))
