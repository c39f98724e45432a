"""config.json: what was written is read, anything else is refused, and a run goes on as it began."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import pytest

from deformvit import UserError, recipes
from deformvit.config import as_dict, options, set_option
from deformvit.engine.checkpoint import CheckpointError
from deformvit.engine.record import LONGEST, MAY_CHANGE, Origin, read_record, refuse_changes, write_record
from deformvit.errors import DescriptionError

RUN = Path("runs/a")


@pytest.mark.parametrize("name", recipes.ALL)
def test_what_was_written_is_read(name, tmp_path):
    config = recipes.ALL[name]()
    config.model.args = {"position": "none"}
    config.run.resume, config.run.dry_run = tmp_path, True  # of a command
    write_record(tmp_path, config, Origin(name, {"data.mean": []}))
    again, origin = read_record(tmp_path)
    assert origin == Origin(name, {"data.mean": []})
    assert (again.run.resume, again.run.dry_run) == (None, False)
    config.run.resume, config.run.dry_run = None, False
    assert again == config
    assert type(again) is type(config)
    refuse_changes(RUN, config, again)


@pytest.mark.parametrize("name", ["demo", "mask-rcnn-dat-tiny-1x", "upernet-dat-tiny"])
def test_a_file_without_its_task_is_known_by_its_head(name, tmp_path):
    """As runs of earlier versions wrote it."""
    config = recipes.ALL[name]()
    values = as_dict(config)
    values["run"]["resume"] = False
    del values["run"]["keep"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_record(tmp_path) == (config, Origin())


VALUES = as_dict(recipes.demo())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "the file: expected dict"),
        ("{", "Expecting property name"),
        ("[" * 100_000, "recursion"),
        (" " * (LONGEST + 1), "longer than 1,048,576 characters"),
        ({"task": "chess"}, "task: expected one of classification, detection, segmentation, got 'chess'"),
        ({"task": ["detection"]}, "task: expected one of"),
        ({"recipe": 3}, "recipe: expected str, got 3"),
        ({"asked": [1]}, "asked: expected dict"),
        ({"flavour": {}}, "unknown section 'flavour'"),
        ({"run": {"speed": 3}}, "unknown field run.'speed'"),
        ({"run": 3}, "run: expected dict"),
        ({"run": {"epochs": "many"}}, "run.epochs: expected int, got 'many'"),
        ({"run": {"epochs": 1.5}}, "run.epochs: expected int, got 1.5"),
        ({"run": {"epochs": -1}}, "run.epochs must .*, got -1"),
        ({"run": {"output": 3}}, "run.output: expected Path, got 3"),
        ({"run": {"output": "a\0b"}}, "run.output: expected Path"),
        ({"run": {"progress": 1}}, "run.progress: expected bool, got 1"),
        ({"run": {"parallel": "many"}}, "run.parallel: expected one of ddp, fsdp, got 'many'"),
        ({"optim": {"betas": [0.9]}}, r"optim.betas: expected tuple\[float, float\], got \[0.9\]"),
        ({"optim": {"lr": 10**400}}, "optim.lr: expected float, got a very large number"),
        ({"optim": {"lr": float("inf")}}, "optim.lr: expected float, got inf"),
        ({"model": {"args": {"dims": [1]}}}, r"model.args.dims: expected str, got \[1\]"),
        ({"task": "detection", **VALUES}, "unknown field data.'cache'"),
    ],
)
def test_anything_else_is_refused(content, message, tmp_path):
    text = content if isinstance(content, str) else json.dumps({**VALUES, **content})
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DescriptionError, match=rf"config.json is not the configuration of a run \(.*{message}"):
        read_record(tmp_path)


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(DescriptionError, match=r"config\.json: no such file; the folder of a run"):
        read_record(tmp_path)
    os.mkfifo(tmp_path / "config.json")  # opening it would wait
    with pytest.raises(DescriptionError, match="no such file"):
        read_record(tmp_path)


def changed(**values):
    before = recipes.demo()
    now = copy.deepcopy(before)
    for name, value in values.items():
        set_option(now, name.replace("__", "."), value)
    refuse_changes(RUN, before, now)


def test_only_where_and_how_a_run_is_computed_may_change():
    known = options(recipes.demo())
    assert set(MAY_CHANGE) <= set(known)
    for name, value in known.items():
        other = {bool: lambda v: not v, str: lambda v: v + "x", dict: lambda v: {"a": "b"}, tuple: lambda v: (9, 9)}
        new = (
            other.get(type(value), lambda v: (v or 0) + 1)(value) if not isinstance(value, Path) else Path("elsewhere")
        )
        if name in (*MAY_CHANGE, "run.epochs"):
            changed(**{name: new})
        else:
            with pytest.raises(CheckpointError, match=f"runs/a was begun with .*{name}"):
                changed(**{name: new})


def test_every_change_is_named_with_both_values():
    with pytest.raises(CheckpointError) as refused:
        changed(optim__lr=0.5, model__checkpoint="dat_nano.cifar10", model__args={"depths": "(1, 1, 1, 1)"})
    assert str(refused.value) == (
        "runs/a was begun with model.checkpoint unset and not 'dat_nano.cifar10', optim.lr 0.001 and not 0.5, "
        "model.args depths unset and not '(1, 1, 1, 1)'. A run goes on as it began, though it may be made longer: "
        "leave --model.checkpoint, --optim.lr, --model.args out, or begin another run in another --run.output"
    )
    other = recipes.ALL["upernet-dat-tiny"]()
    with pytest.raises(CheckpointError, match="runs/a is a run of classification, not of segmentation"):
        refuse_changes(RUN, recipes.demo(), other)


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ((5, 0), (6, 0), ""),
        ((5, 0), (4, 0), "run.epochs 5 and not 4"),
        ((5, 100), (5, 200), ""),
        ((5, 100), (1, 100), ""),  # epochs do not count
        ((5, 100), (5, 99), "run.steps 100 and not run.steps 99"),
        ((5, 100), (500, 0), "run.steps 100 and not run.steps 0"),
        ((5, 0), (5, 1000), "run.epochs 5 and not run.steps 1000"),
    ],
)
def test_a_run_may_become_longer_but_not_shorter(before, now, message):
    configs = recipes.demo(), recipes.demo()
    for config, (epochs, steps) in zip(configs, (before, now), strict=True):
        config.run.epochs, config.run.steps = epochs, steps
    if not message:
        refuse_changes(RUN, *configs)
        return
    with pytest.raises(UserError, match=f"begun with {message}. A run goes on"):
        refuse_changes(RUN, *configs)
