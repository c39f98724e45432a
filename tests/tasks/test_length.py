"""How long runs train whose configuration leaves that open."""

from __future__ import annotations

import pytest

from deformvit import distributed, recipes
from deformvit.tasks.length import fill_in_length


@pytest.mark.parametrize(
    ("recipe", "images", "epochs", "batch"),
    [
        ("folder", 12, 30, 12), ("folder", 300, 30, 32), ("folder", 3000, 20, 32), ("folder", 10**6, 5, 32),
        ("detect", 3, 60, 3), ("detect", 500, 10, 4), ("segment", 100_000, 8, 6),
    ],
)  # fmt: skip
def test_few_images_are_seen_often_and_many_seldom(recipe, images, epochs, batch):
    config = recipes.ALL[recipe]()
    fill_in_length(config, images)
    assert (config.run.epochs, config.data.batch_size) == (epochs, batch)


@pytest.mark.parametrize("recipe", ["demo", "mask-rcnn-dat-tiny-1x"])
def test_what_is_set_is_not_changed(recipe):
    config, before = recipes.ALL[recipe](), recipes.ALL[recipe]()
    fill_in_length(config, 3)
    assert config == before


def test_long_evaluations_come_seldom():
    config = recipes.ALL["detect"]()
    fill_in_length(config, 3)
    assert config.run.eval_every == 7
    config = recipes.ALL["folder"]()
    fill_in_length(config, 3)
    assert config.run.eval_every == 1


def test_a_small_batch_is_still_shared_by_processes(monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 4)
    for recipe in ("folder", "detect"):
        config = recipes.ALL[recipe]()
        config.data.batch_size = 32
        fill_in_length(config, 11)
        assert config.data.batch_size == 8
