"""``deformvit train``."""

from __future__ import annotations

import difflib
import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from deformvit import recipes
from deformvit.cli import confusion
from deformvit.cli.inputs import print_values
from deformvit.config import BaseConfig, DetectionConfig, SegmentationConfig, options, set_option
from deformvit.errors import UserError

if TYPE_CHECKING:
    from deformvit.engine.loop import Task
    from deformvit.engine.record import Origin

RESUME = "--run.resume"


def main(words: list[str]) -> None:
    """Read the name of a recipe, then the options, which are the fields of that recipe's configuration.

    Args:
        words: the name, spelt with ``-`` or ``_``, and options; ``--dry-run`` is short for ``--run.dry-run``. With
            ``--run.resume RUN`` the configuration is that of the run, and the name may be left out.

    Raises:
        SystemExit: with 2 for a missing or unknown recipe, or an invalid option.
        UserError: there is no run to resume, or it was begun as another one.
    """
    if words[:1] in (["-h"], ["--help"]):
        print(f"usage: deformvit train RECIPE [OPTIONS]\n       deformvit train {RESUME} RUN [OPTIONS]\n")
        print(f"{run.__doc__}\n\nrecipes:")
        print_values(recipes.summaries())
        print("\n`deformvit train RECIPE --help` shows the options of a recipe.")
        return
    folder = _resumed(words)
    name = words[0].replace("_", "-") if words and not (folder and words[0].startswith("-")) else ""
    if name not in recipes.ALL and (name or not folder):
        given = f", got {words[0]!r}" if words else ""
        similar = "".join(f", similar: {other}" for other in difflib.get_close_matches(name, recipes.ALL, n=1))
        print(
            f"deformvit: train expects the name of a recipe first{given}{similar}; `deformvit recipes` lists them, "
            f"and {RESUME} RUN goes on with a run",
            file=sys.stderr,
        )
        raise SystemExit(2)
    words = ["--run.dry-run" if word == "--dry-run" else word for word in words[bool(name) :]]
    if folder is not None and (not name or (folder / "config.json").exists()):
        run(*_go_on(folder, name, words))
        return
    config = recipes.ALL[name]()
    if folder is not None:  # where there is no run yet, it begins
        config.run.output = config.run.resume = folder
    run(_parse(config, f"deformvit train {name}", recipes.ALL[name].__doc__, words), name)


def run(config: BaseConfig, recipe: str = "", origin: Origin | None = None) -> None:
    """Train a recipe; every field of its configuration is an option."""
    from deformvit import distributed
    from deformvit.engine import loop
    from deformvit.engine.record import Origin, plain

    if config.run.dry_run:
        from deformvit.cli import dry_run

        dry_run.show(_task(config, fake_data=True), config)
        return
    with distributed.process_group():
        asked = {name: plain(value) for name, value in options(config).items()}
        task = _task(config)  # chooses what the configuration leaves open
        chosen = [name for name, value in options(config).items() if plain(value) != asked[name]]
        origin = origin or Origin(recipe, {name: asked[name] for name in chosen})
        metrics = loop.fit(task, config, origin)
        if distributed.rank() == 0:
            print_values([(name, f"{value:.4g}") for name, value in metrics.items()])
            print(f"\nbest weights: {config.run.output / 'best.safetensors'}")
            confusion.show_run(config.run.output)


def _resumed(words: list[str]) -> Path | None:
    """The folder that ``--run.resume`` names; None without that option."""
    for number, word in enumerate(words):
        option, _, value = word.partition("=")
        if option == RESUME:
            value = value or " ".join(words[number + 1 : number + 2])
            if not value or value.startswith("--"):
                raise UserError(f"{RESUME} expects the folder of the run, as in {RESUME} {_output(words)}")
            return Path(value)
    return None


def _output(words: list[str]) -> str:
    """What ``--run.output`` names; an example without that option."""
    after = dict(itertools.pairwise(words))
    return after.get("--run.output", "runs/demo")


def _go_on(folder: Path, name: str, words: list[str]) -> tuple[BaseConfig, str, Origin]:
    """The configuration of the run in a folder, with options that may change.

    Args:
        folder: of the run.
        name: a recipe, which must be that of the run; empty for any.
        words: options. They may repeat what the run was begun with.
    """
    from deformvit.engine.record import plain, read_record, refuse_changes

    before, origin = read_record(folder)
    recipe = origin.recipe or f"a configuration of {type(before).__name__}"
    if name and (origin.recipe != name if origin.recipe else type(before) is not type(recipes.ALL[name]())):
        raise UserError(f"{folder} is a run of {recipe}, not of {name}; `deformvit train {RESUME} {folder}` goes on")
    _check_stranger(folder, before, words)
    before.run.output = before.run.resume = folder
    known, args = options(before), before.model.args
    before.model.args = {}  # for tyro, each entry of a mapping that is not empty would be an option of its own
    config = _parse(before, f"deformvit train {RESUME} {folder}", f"Go on with {folder}, a run of {recipe}.", words)
    before.model.args, config.model.args = args, config.model.args or args
    for option, value in options(config).items():
        if option in origin.asked and plain(value) == origin.asked[option]:
            set_option(config, option, known[option])  # as the run was begun, whatever was chosen then
    refuse_changes(folder, before, config)
    return config, name, origin


def _check_stranger(folder: Path, config: BaseConfig, words: list[str]) -> None:
    """Refuse what a file must not ask for, as it may be a stranger's: unknown models, and downloads."""
    from deformvit.models.descriptions import check_arguments
    from deformvit.tasks.classification import parse_args

    try:
        check_arguments(config.model.name, parse_args(config.model.args))
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: model.{error}") from error
    root = config.data.root
    if root.startswith(("http://", "https://")) and not any(word.split("=")[0] == "--data.root" for word in words):
        raise UserError(f"the images of {folder} are at an address; add --data.root {root} to download from there")


def _parse(default: BaseConfig, command: str, description: str | None, words: list[str]) -> BaseConfig:
    return tyro.cli(type(default), default=default, prog=command, description=description, args=words)


def _task(config: Any, fake_data: bool = False) -> Task:
    """The task of a run; ``fake_data`` stands for ImageNet where it is missing."""
    if isinstance(config, DetectionConfig):
        from deformvit.tasks.detection import Detection

        return Detection(config)
    if isinstance(config, SegmentationConfig):
        from deformvit.tasks.segmentation import Segmentation

        return Segmentation(config)
    from deformvit.tasks.classification import Classification

    if fake_data and not Path(config.data.root).exists():
        from deformvit.cli import dry_run
        from deformvit.tasks.preprocessing import fill_in

        fill_in(config)  # the size of the images that stand in
        images = dry_run.fake_data(config)
        return Classification(config, images, images)
    return Classification(config)
