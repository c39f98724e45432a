"""``config.json`` in the folder of a run: written at its start, read strictly, compared with what is to go on.

Nothing in the file is executed: sections and fields are those of the configuration's dataclasses, and of their types.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from deformvit.config import (
    BaseConfig,
    ClassificationConfig,
    DetectionConfig,
    DetectorConfig,
    SegmentationConfig,
    as_dict,
    options,
)
from deformvit.engine.checkpoint import CheckpointError
from deformvit.errors import DescriptionError
from deformvit.plain import conform, short
from deformvit.runs import CONFIG
from deformvit.storage import write_atomically

KINDS: dict[str, type[BaseConfig]] = {
    "classification": ClassificationConfig, "detection": DetectionConfig, "segmentation": SegmentationConfig,
}  # fmt: skip
"""Configurations by the task that the file names."""
OF_A_COMMAND = ("run.resume", "run.dry_run")
"""What one command does with a run: no part of it, and not in its file."""
MAY_CHANGE = (
    *OF_A_COMMAND, "run.output", "run.device", "run.compile", "run.parallel", "run.accumulate",
    "run.grad_checkpointing", "run.channels_last", "run.nonfinite", "run.save_minutes", "run.keep", "run.eval_every",
    "run.progress", "data.root", "data.cache", "data.workers", "data.max_unreadable", "data.eval_batch_size",
)  # fmt: skip
"""Options that a resumed run may be given anew: where its files are, how it is computed, how often it reports. A new
``data.root`` must hold as many images of the same classes. ``run.epochs`` and ``run.steps`` may become more."""
LONGEST = 1 << 20
"""Characters of a file."""


@dataclass
class Origin:
    """How a run came about."""

    recipe: str = ""
    """Name of its recipe; empty for a configuration made in Python."""
    asked: dict[str, Any] = field(default_factory=dict)
    """Options that had another value before the task chose one, as plain values: ``{"data.img_size": 0}``."""


def write_record(folder: Path, config: BaseConfig, origin: Origin) -> None:
    """Write ``config.json``, whole or not at all."""
    task = next(name for name, kind in KINDS.items() if isinstance(config, kind))
    values = as_dict(config)
    for name in OF_A_COMMAND:
        section, _, entry = name.partition(".")
        del values[section][entry]
    text = json.dumps({"task": task, "recipe": origin.recipe, "asked": origin.asked, **values}, indent=2) + "\n"
    write_atomically(folder / CONFIG, lambda path: path.write_text(text))


def read_record(folder: Path) -> tuple[BaseConfig, Origin]:
    """What :func:`write_record` wrote. Fields that the file lacks have their defaults.

    Raises:
        DescriptionError: no such file, or unknown fields and values of other types in it; the message names them.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise DescriptionError(f"{path}: no such file; the folder of a run that has begun holds one")
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(LONGEST + 1)
        if len(text) > LONGEST:
            raise DescriptionError(f"longer than {LONGEST:,} characters")
        return _parse(json.loads(text))
    except (OSError, ValueError, RecursionError) as error:
        raise DescriptionError(f"{path} is not the configuration of a run ({error})") from error


def refuse_changes(folder: Path, before: BaseConfig, now: BaseConfig) -> None:
    """Raise :class:`CheckpointError` where a run is to go on with other options than it began with.

    The message names each, with both values; :data:`MAY_CHANGE` lists those that are free.
    """
    if type(before) is not type(now):
        kinds = {kind: name for name, kind in KINDS.items()}
        raise CheckpointError(f"{folder} is a run of {kinds[type(before)]}, not of {kinds[type(now)]}")
    old, new = _entries(before), _entries(now)
    free = (*MAY_CHANGE, "run.epochs", "run.steps")
    changed = {
        name: f"{name} {_shown(old.get(name))} and not {_shown(new.get(name))}"
        for name in {**old, **new}
        if name not in free and old.get(name) != new.get(name)
    } | _shorter(before, now)
    if not changed:
        return
    words = dict.fromkeys(f"--{name.split()[0].replace('_', '-')}" for name in changed)
    raise CheckpointError(
        f"{folder} was begun with {', '.join(changed.values())}. A run goes on as it began, though it may be made "
        f"longer: leave {', '.join(words)} out, or begin another run in another --run.output"
    )


def plain(value: Any) -> Any:
    """A value as the file holds it."""
    return json.loads(json.dumps(value, default=str))


def _parse(content: Any) -> tuple[BaseConfig, Origin]:
    values = dict(conform(content, dict[str, Any], "the file"))
    kind = _kind(values.pop("task", None), values.get("head"))
    asked = conform(values.pop("asked", {}), dict[str, Any], "asked")
    origin = Origin(conform(values.pop("recipe", ""), str, "recipe"), asked)
    default = kind()
    sections = {entry.name: getattr(default, entry.name) for entry in fields(default)}
    for name, section in values.items():
        if name not in sections:
            raise DescriptionError(f"unknown section {short(name)}")
        given = dict(conform(section, dict[str, Any], name))
        for option in OF_A_COMMAND:
            given.pop(option.removeprefix(f"{name}."), None)
        hints = get_type_hints(type(sections[name]))
        for entry in given:
            if entry not in hints:
                raise DescriptionError(f"unknown field {name}.{short(entry)}")
        sections[name] = replace(
            sections[name], **{entry: conform(value, hints[entry], f"{name}.{entry}") for entry, value in given.items()}
        )
    return kind(**sections), origin


def _kind(task: Any, head: Any) -> type[BaseConfig]:
    """The configuration of a task; where the file names none, that which has such a head."""
    if task is not None:
        if not isinstance(task, str) or task not in KINDS:
            raise DescriptionError(f"task: expected one of {', '.join(KINDS)}, got {short(task)}")
        return KINDS[task]
    if head is None:
        return ClassificationConfig
    systems = get_args(get_type_hints(DetectorConfig)["system"])
    return DetectionConfig if isinstance(head, dict) and head.get("system") in systems else SegmentationConfig


def _entries(config: BaseConfig) -> dict[str, Any]:
    """Plain values by the words of their options; those of a mapping one by one."""
    found: dict[str, Any] = {}
    for name, value in options(config).items():
        inner = {f"{name} {key}": entry for key, entry in value.items()} if isinstance(value, dict) else {name: value}
        found |= {word: plain(entry) for word, entry in inner.items()}
    return found


def _shorter(before: BaseConfig, now: BaseConfig) -> dict[str, str]:
    """The option that makes the run shorter, or counts it in another way, and what was and is asked for."""
    old, new = before.run, now.run
    if new.steps != old.steps and not new.steps > old.steps > 0:
        length = f"run.steps {old.steps}" if old.steps else f"run.epochs {old.epochs}"
        return {"run.steps": f"{length} and not run.steps {new.steps}"}
    if not new.steps and new.epochs < old.epochs:
        return {"run.epochs": f"run.epochs {old.epochs} and not {new.epochs}"}
    return {}


def _shown(value: Any) -> str:
    return "unset" if value in (None, "", []) else short(value)
