"""Small training runs and what they leave, for the tests of the engine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from torch.distributed.checkpoint import FileSystemReader

from deformvit import recipes
from deformvit.engine import loop
from deformvit.engine.checkpoint import Checkpoints
from deformvit.tasks.classification import Classification

TINY = {
    "dims": "(8, 16, 16, 16)", "num_heads": "(1, 2, 2, 2)", "groups": "(1, 1, 1, 2)", "depths": "(1, 2, 2, 1)",
}  # fmt: skip


def small(images: Path, output: Path, epochs: int = 4, **augment) -> recipes.ClassificationConfig:
    config = recipes.demo()
    config.model.args = dict(TINY)
    config.model.drop_path_rate = 0.1
    config.data.root = str(images)
    config.data.batch_size = 8
    config.augment = dataclasses.replace(config.augment, hflip=0.0, **augment)
    config.run = dataclasses.replace(config.run, epochs=epochs, output=output, progress=False)
    return config


def run(config):
    return loop.fit(Classification(config), config)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Everything in the last checkpoint of a run."""
    checkpoints = Checkpoints(folder / "checkpoints")
    step = checkpoints.steps()[0]
    entries = FileSystemReader(checkpoints.path(step)).read_metadata().state_dict_metadata
    values = {name: torch.zeros(entry.size, dtype=entry.properties.dtype) for name, entry in entries.items()}
    checkpoints.load(step, values)
    return values


def weights(folder: Path, what: str) -> dict[str, torch.Tensor]:
    """The model ("model") of the last checkpoint of a run, its average or its optimiser."""
    return {name.split(".", 1)[1]: value for name, value in tensors(folder).items() if name.startswith(f"{what}.")}


def assert_same_state(one: Path, other: Path) -> None:
    """Bit by bit: weights, averages and the optimiser's moments."""
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_times(rows):
    timed = {"seconds", "images_s", "loader_images_s", "loader_ratio"}
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]
