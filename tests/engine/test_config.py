"""Configurations that cannot work are refused in one line that names the value."""

from __future__ import annotations

import dataclasses

import pytest

from deformvit import UserError, recipes


@pytest.mark.parametrize(
    ("recipe", "section", "values", "message"),
    [
        ("demo", "data", {"batch_size": 0}, "data.batch_size must be positive, got 0"),
        ("demo", "run", {"epochs": -1}, "run.epochs must not be negative, got -1"),
        ("demo", "data", {"crop_pct": 1.5}, "data.crop_pct must be from 0 to 1, got 1.5"),
        ("demo", "data", {"max_unreadable": -1}, "data.max_unreadable must not be negative, got -1"),
        ("demo", "run", {"ema": 1.0}, "run.ema must be at least 0 and below 1, got 1.0"),
        (
            "demo", "run", {"amp": "fp16", "parallel": "fsdp"},
            "run.amp fp16 scales losses, which run.parallel fsdp does not support; use run.amp bf16",
        ),
        *(
            (
                "mask-rcnn-dat-tiny-1x", "optim", {"milestones": milestones},
                f"optim.milestones must be increasing numbers of epochs from 1, got {milestones}",
            )
            for milestones in ((), (0, 8), (11, 8), (8, 8))
        ),
        *(
            ("upernet-dat-tiny", "data", {"eval_scales": scales}, f"data.eval_scales must be positive, got {scales}")
            for scales in ((), (0.5, 0.0), (-1.0,))
        ),
        (
            "upernet-dat-tiny", "data", {"cat_max_ratio": 0.0},
            "data.cat_max_ratio must be above 0 and at most 1, got 0.0",
        ),
    ],
)  # fmt: skip
def test_errors_name_the_bad_value(recipe, section, values, message):
    config = recipes.ALL[recipe]()
    changed = dataclasses.replace(getattr(config, section), **values)
    with pytest.raises(UserError) as raised:
        dataclasses.replace(config, **{section: changed})
    assert str(raised.value) == message


def test_milestones_belong_to_one_schedule():
    config = recipes.demo()
    optim = dataclasses.replace(config.optim, schedule="cosine", milestones=())
    assert dataclasses.replace(config, optim=optim).optim.milestones == ()
