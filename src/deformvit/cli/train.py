"""``deformvit train``."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from deformvit import recipes
from deformvit.cli import confusion
from deformvit.cli.inputs import print_values
from deformvit.config import BaseConfig, DetectionConfig, SegmentationConfig

if TYPE_CHECKING:
    from deformvit.engine.loop import Task


def main(words: list[str]) -> None:
    """Read the name of a recipe, then the options, which are the fields of that recipe's configuration.

    Args:
        words: the name, spelt with ``-`` or ``_``, and options; ``--dry-run`` is short for ``--run.dry-run``.

    Raises:
        SystemExit: with 2 for a missing or unknown recipe, or an invalid option.
    """
    if words[:1] in (["-h"], ["--help"]):
        print(f"usage: deformvit train RECIPE [OPTIONS]\n\n{run.__doc__}\n\nrecipes:")
        print_values(recipes.summaries())
        print("\n`deformvit train RECIPE --help` shows the options of a recipe.")
        return
    name = words[0].replace("_", "-") if words else ""
    if name not in recipes.ALL:
        given = f", got {words[0]!r}" if words else ""
        similar = "".join(f", similar: {other}" for other in difflib.get_close_matches(name, recipes.ALL, n=1))
        print(
            f"deformvit: train expects the name of a recipe first{given}{similar}; `deformvit recipes` lists the names",
            file=sys.stderr,
        )
        raise SystemExit(2)
    recipe = recipes.ALL[name]
    config = recipe()
    options = ["--run.dry-run" if word == "--dry-run" else word for word in words[1:]]
    run(
        tyro.cli(type(config), default=config, prog=f"deformvit train {name}", description=recipe.__doc__, args=options)
    )


def run(config: BaseConfig) -> None:
    """Train a recipe; every field of its configuration is an option."""
    from deformvit import distributed
    from deformvit.engine import loop

    if config.run.dry_run:
        from deformvit.cli import dry_run

        dry_run.show(_task(config, fake_data=True), config)
        return
    with distributed.process_group():
        metrics = loop.fit(_task(config), config)
        if distributed.rank() == 0:
            print_values([(name, f"{value:.4g}") for name, value in metrics.items()])
            print(f"\nbest weights: {config.run.output / 'best.safetensors'}")
            confusion.show_run(config.run.output)


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
