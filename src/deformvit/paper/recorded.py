"""Training runs on disk: which row of a table they are of, and what they reached."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deformvit import recipes
from deformvit.config import as_dict
from deformvit.paper.tables import Row, Table
from deformvit.runs import read_metrics
from deformvit.tasks.classification import parse_args

_OF_A_SYSTEM = (("model", "name"), ("model", "args"), ("head", "system"), ("run", "epochs"), ("run", "steps"))
"""Settings that make a run one of a detection or segmentation recipe: network and schedule."""


@dataclass(frozen=True)
class RecordedRun:
    """A folder that ``deformvit train`` wrote."""

    folder: Path
    config: dict[str, dict[str, Any]]
    """As in ``config.json``."""
    epochs: list[dict[str, float]]

    @property
    def root(self) -> str:
        """Where its images were."""
        return str(self.config["data"]["root"])

    def is_run_of(self, row: Row) -> bool:
        """Whether it trained the row's network; of a system, with the row's schedule too."""
        if row.recipe:
            recipe = as_dict(recipes.ALL[row.recipe]())
            return all(self.config.get(part, {}).get(key) == recipe[part][key] for part, key in _OF_A_SYSTEM)
        model = self.config["model"]
        return (model["name"], _comparable(parse_args(model["args"]))) == (row.model, _comparable(row.args))

    def best(self, metric: str) -> dict[str, float] | None:
        """The evaluation in which ``metric`` is largest; None before the first."""
        evaluated = [epoch for epoch in self.epochs if metric in epoch]
        return max(evaluated, key=lambda epoch: epoch[metric], default=None)


def recorded_runs(folder: Path) -> list[RecordedRun]:
    """The runs in the folders of a folder, by name; folders without a readable ``config.json`` are not runs."""
    runs = []
    for path in sorted(folder.glob("*/config.json")):
        try:
            config = json.loads(path.read_text())
            config["data"]["root"], config["model"]["name"], config["model"]["args"].items()
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        runs.append(RecordedRun(path.parent, config, read_metrics(path.parent)))
    return runs


@dataclass(frozen=True)
class SeedRun:
    """A run that ``deformvit ablate`` trains: a row with a seed."""

    row: Row
    seed: int
    folder: Path

    def epochs(self) -> list[dict[str, float]]:
        """Metrics of the epochs so far."""
        return read_metrics(self.folder)

    def final_top1(self, epochs: int) -> float | None:
        """Accuracy after the last of ``epochs`` epochs, not the best one; None before that."""
        done = self.epochs()
        return done[-1].get("top1") if done and done[-1]["epoch"] == epochs - 1 else None


def seed_runs(table: Table, seeds: int, folder: Path) -> list[SeedRun]:
    """Every row with every seed, in folders of ``folder``; all rows with the first seed come first."""
    return [
        SeedRun(row, seed, folder / f"{_slug(row.label)}-seed{seed}") for seed in range(seeds) for row in table.rows
    ]


def _slug(label: str) -> str:
    """A label as the name of a folder."""
    words = "".join(letter if letter.isalnum() else " " for letter in label.lower()).split()
    return "-".join(words)


def _comparable(value: Any) -> Any:
    """Lists as tuples, which are the same argument."""
    if isinstance(value, dict):
        return {name: _comparable(item) for name, item in value.items()}
    return tuple(_comparable(item) for item in value) if isinstance(value, list | tuple) else value
