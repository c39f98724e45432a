"""Training for ``deformvit ablate``: every row of a table with several seeds; finished runs are not repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy

from deformvit.config import ClassificationConfig
from deformvit.engine.loop import fit
from deformvit.paper.recorded import SeedRun
from deformvit.paper.tables import Row
from deformvit.tasks.classification import Classification


def train(
    runs: Sequence[SeedRun], base: ClassificationConfig, rows: Sequence[Row], report: Callable[[str], None]
) -> Iterator[SeedRun]:
    """Train all runs that are not finished, resuming those that were interrupted; yields each one when it has ended.

    Args:
        runs: all of a table (:func:`deformvit.paper.recorded.seed_runs`).
        base: the recipe, all but the model.
        rows: train only the runs of these rows.
        report: is given a line at the start of every run.
    """
    for number, run in enumerate(runs, 1):
        if run.row not in rows or run.final_top1(base.run.epochs) is not None:
            continue
        report(f"{number} of {len(runs)}: {run.row.label}, seed {run.seed}")
        config = run_config(run, base)
        fit(Classification(config), config)
        yield run


def run_config(run: SeedRun, base: ClassificationConfig) -> ClassificationConfig:
    """The recipe ``base`` with the model of the run's row, and the run's seed and folder."""
    config = deepcopy(base)
    config.model.name = run.row.model
    config.model.args = {name: value if isinstance(value, str) else repr(value) for name, value in run.row.args.items()}
    config.run.seed, config.run.output, config.run.resume = run.seed, run.folder, run.folder
    return config
