"""``deformvit train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from deformvit import recipes
from deformvit.cli.inputs import print_values
from deformvit.config import BaseConfig, DetectionConfig, SegmentationConfig

if TYPE_CHECKING:
    from deformvit.engine.loop import Task

    Recipe = BaseConfig
else:
    Recipe = Annotated[
        tyro.extras.subcommand_type_from_defaults(
            {name: recipe() for name, recipe in recipes.ALL.items()},
            {name: (recipe.__doc__ or "").strip() for name, recipe in recipes.ALL.items()},
            prefix_names=False,
        ),
        tyro.conf.arg(name=""),
    ]


def train(config: Recipe) -> None:
    """Train a recipe; every field of its configuration is an option."""
    from deformvit import distributed
    from deformvit.engine import loop

    if config.run.dry_run:
        from deformvit.cli import dry_run

        dry_run.show(_task(config, imagined=True), config)
        return
    with distributed.process_group():
        metrics = loop.fit(_task(config), config)
        if distributed.rank() == 0:
            print_values([(name, f"{value:.4g}") for name, value in metrics.items()])
            print(f"\nbest weights: {config.run.output / 'best.safetensors'}")


def _task(config: Any, imagined: bool = False) -> Task:
    """The task of a run; ImageNet may be imagined where it is not at hand."""
    if isinstance(config, DetectionConfig):
        from deformvit.tasks.detection import Detection

        return Detection(config)
    if isinstance(config, SegmentationConfig):
        from deformvit.tasks.segmentation import Segmentation

        return Segmentation(config)
    from deformvit.tasks.classification import Classification

    if imagined and not Path(config.data.root).exists():
        from deformvit.cli import dry_run

        images = dry_run.imagined(config)
        return Classification(config, images, images)
    return Classification(config)
