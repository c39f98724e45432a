"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(2)


def _recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_recipe", GOLDEN / "recipe.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class GoldenCase:
    """A released configuration, its defined weights and image, and what the released code made of them."""

    def __init__(self, name: str) -> None:
        self.recipe = _recipe()
        self.json: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
        self.outputs = np.load(GOLDEN / f"{name}.npz")

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.json["config"])

    def state_dict(self, buffers: bool = True) -> dict[str, torch.Tensor]:
        """Weights under the released names; index buffers are zeros, as a converter must not read them."""
        return {
            name: torch.zeros(shape, dtype=torch.long)
            if name.endswith(self.recipe.INDEX_BUFFERS)
            else torch.from_numpy(self.recipe.tensor(name, tuple(shape)))
            for name, shape in self.json["keys"].items()
            if buffers or not name.endswith(self.recipe.INDEX_BUFFERS)
        }

    def image(self) -> torch.Tensor:
        return torch.from_numpy(self.recipe.image(self.json["batch"], *self.json["image_hw"]))

    def cotangent(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.recipe.tensor("cotangent", tuple(logits.shape)))


@pytest.fixture
def golden() -> type[GoldenCase]:
    return GoldenCase


@pytest.fixture
def shared_data() -> Path:
    """The image sets beside the project, for measuring; they are no part of it."""
    path = Path(__file__).parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("../shared/data is not here: tests on real image sets are skipped")
    return path


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
