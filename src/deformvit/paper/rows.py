"""What a row of a table stands for: its network, what that costs, and the options that train it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn

from deformvit import recipes
from deformvit.config import DetectionConfig, SegmentationConfig
from deformvit.paper.complexity import Complexity, count_complexity
from deformvit.paper.tables import Row, Table
from deformvit.systems import build_detector, build_segmenter
from deformvit.systems.cascade import CascadeRoIHeads
from deformvit.systems.detector import Detector
from deformvit.systems.segmenter import Segmenter

STRIDED_KEYS = (1, 1, 2, 2)
"""Strides of the key grid with which the paper's counts of detectors and segmentation networks come out."""
REGIONS, OBJECTS = 1000, 100
"""Regions that box heads and mask heads are counted with, as in mmdetection's counter."""


def architecture(row: Row) -> str:
    """What a row's cost depends on, as a key; the same for rows that differ in the training schedule alone."""
    if row.recipe:
        config = _system_config(row)
        return f"{config.model} {config.head}"
    return f"{row.model} {row.args}"


def row_complexity(row: Row, table: Table, *, activations: bool = False, strided: bool = False) -> Complexity | None:
    """The cost of one image of the table's size; None for a row without a network here.

    Args:
        row: one of the table's.
        table: says image size and number of classes.
        activations: count the memory of activations too.
        strided: with the key grid of :data:`STRIDED_KEYS`.
    """
    args = {**row.args, **({"stride": STRIDED_KEYS} if strided else {})}
    classes = table.data.classes
    if row.recipe:
        assert table.image is not None
        return count_complexity(_system_builder(row, classes, args), (3, *table.image), activations)
    if not row.model:
        return None
    image = timm.get_pretrained_cfg(row.model).input_size if table.image is None else (3, *table.image)
    return count_complexity(lambda: timm.create_model(row.model, num_classes=classes, **args), image, activations)


def train_options(row: Row) -> str:
    """What ``deformvit train`` is given for the row: the recipe, or the options of the model."""
    if row.recipe:
        return row.recipe
    if not row.args:
        return f"--model.name {row.model}"
    values = " ".join(f"{name} {_quote(value)}" for name, value in row.args.items())
    return f"--model.name {row.model} --model.args {values}"


def _quote(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return f'"{text}"' if any(letter in text for letter in " ()'") else text


def _system_config(row: Row) -> DetectionConfig | SegmentationConfig:
    config = recipes.ALL[row.recipe]()
    assert isinstance(config, DetectionConfig | SegmentationConfig)
    return config


def _system_builder(row: Row, classes: int, args: dict[str, Any]) -> Callable[[], nn.Module]:
    config = _system_config(row)
    if isinstance(config, DetectionConfig):
        return lambda: _AllLayers(build_detector(config, classes, args))
    return lambda: _AllLayers(build_segmenter(config, classes, args))


class _AllLayers(nn.Module):
    """A system whose forward pass is all of its layers on one image, without selecting boxes, which needs values.

    Args:
        system: a detector or a segmentation network; its auxiliary head is counted too, as in the papers.
    """

    def __init__(self, system: Detector | Segmenter) -> None:
        super().__init__()
        self.system = system

    def forward(self, images: Tensor) -> list[Tensor]:
        """(1, 3, H, W) images -> the outputs of all heads."""
        system = self.system
        if isinstance(system, Segmenter):
            maps = system.backbone(images)
            return [head(maps) for head in (system.head, system.auxiliary) if head is not None]
        network = system.network
        levels = list(network.backbone(images).values())  # type: ignore[operator]
        if system.config.system == "retinanet":
            return list(network.head(levels).values())  # type: ignore[operator]
        outputs = [*network.rpn.head(levels)[0]]  # type: ignore[union-attr, operator]
        channels = system.config.channels
        regions = torch.zeros(REGIONS, channels, 7, 7, device=images.device)
        objects = torch.zeros(OBJECTS, channels, 14, 14, device=images.device)
        heads = network.roi_heads
        if isinstance(heads, CascadeRoIHeads):
            for stage in heads.stages:
                outputs += [*stage(regions), stage.masks(objects)]  # type: ignore[operator]
            return outputs
        box = heads.box_predictor(heads.box_head(regions))  # type: ignore[union-attr, operator]
        return [*outputs, *box, heads.mask_predictor(heads.mask_head(objects))]  # type: ignore[union-attr, operator]
