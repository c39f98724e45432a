"""Detectors and segmentation networks: from the configuration of a run, and from the description in a model file."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from deformvit.config import IMAGENET_MEAN, IMAGENET_STD, DetectionConfig, SegmentationConfig
from deformvit.errors import UserError
from deformvit.models import files
from deformvit.models.descriptions import ClassifierDescription, DetectorDescription, SegmenterDescription
from deformvit.models.files import ModelFile
from deformvit.models.state import compare, shapes
from deformvit.systems.backbone import STAGES, Backbone
from deformvit.systems.detector import DEFAULT_STAGES, Detector
from deformvit.systems.segmenter import Segmenter


def build_detector(config: DetectionConfig, classes: int, args: dict[str, Any] | None = None) -> Detector:
    """The detector of a run, starting from ``model.checkpoint`` where that is set.

    Args:
        config: the run.
        classes: kinds of objects.
        args: arguments of the backbone.

    Raises:
        UserError: weights of another architecture. Layers whose shapes depend on the classes may differ; they keep
            their initial weights.
    """
    head, data, model = config.head, config.data, config.model
    whole = _whole_system(model.checkpoint)
    backbone = Backbone(
        model.name, args, stages=head.stages or DEFAULT_STAGES[head.system], drop_path_rate=model.drop_path_rate,
        checkpoint="" if whole else model.checkpoint,
    )  # fmt: skip
    detector = Detector(
        backbone,
        head,
        classes,
        mean=data.mean or IMAGENET_MEAN,
        std=data.std or IMAGENET_STD,
        eval_size=data.eval_size,
        max_size=data.max_size,
    )
    if whole:
        _load_fitting(detector, whole)
    return detector


def build_segmenter(config: SegmentationConfig, classes: int, args: dict[str, Any] | None = None) -> Segmenter:
    """The segmentation network of a run, as :func:`build_detector`."""
    data, model = config.data, config.model
    whole = _whole_system(model.checkpoint)
    backbone = Backbone(
        model.name, args, stages=STAGES, drop_path_rate=model.drop_path_rate,
        checkpoint="" if whole else model.checkpoint,
    )  # fmt: skip
    segmenter = Segmenter(
        backbone,
        config.head,
        classes,
        mean=data.mean or IMAGENET_MEAN,
        std=data.std or IMAGENET_STD,
        scale=data.scale,
        ignore_label=data.ignore_label,
    )
    if whole:
        _load_fitting(segmenter, whole)
    return segmenter


def taken_weights(checkpoint: str) -> str:
    """Which weights of ``model.checkpoint`` a run starts from, in words."""
    whole = _whole_system(checkpoint)
    return f"a whole {whole.description.task} model" if whole and whole.description else "the backbone; the rest is new"


def _whole_system(checkpoint: str) -> ModelFile | None:
    """The file of a whole detector or segmentation network; None for a classifier, whose weights are the backbone's."""
    if not checkpoint or (path := files.resolve(checkpoint)).suffix != ".safetensors":
        return None
    file = files.open_model_file(path)
    return None if file.description is None or isinstance(file.description, ClassifierDescription) else file


def _load_fitting(model: nn.Module, file: ModelFile) -> None:
    difference = compare(shapes(model.state_dict()), file.shapes)
    if difference.missing or difference.unexpected:
        raise UserError(f"{file.path}: weights of another architecture than this run's: {difference}")
    tensors = file.tensors()
    if difference.other_shapes:
        names = list(difference.other_shapes)
        print(
            f"deformvit: {file.path}: {len(names)} weights of other shapes are not loaded: {', '.join(names)}",
            file=sys.stderr,
        )
        tensors = {name: tensor for name, tensor in tensors.items() if name not in difference.other_shapes}
    model.load_state_dict(tensors, strict=False)


def describe_detector(model: Detector, classes: list[str], metrics: dict[str, float]) -> DetectorDescription:
    """What a model file says of a detector, enough to build it again."""
    return DetectorDescription(
        **_describe_backbone(model), classes=classes, metrics=metrics, head=model.config, eval_size=model.eval_size,
        max_size=model.max_size,
    )  # fmt: skip


def describe_segmenter(
    model: Segmenter, classes: list[str], metrics: dict[str, float], reduce_zero_label: bool
) -> SegmenterDescription:
    """What a model file says of a segmentation network, enough to build it again."""
    return SegmenterDescription(
        **_describe_backbone(model), classes=classes, metrics=metrics, head=model.config, scale=model.scale,
        ignore_label=model.ignore_label, reduce_zero_label=reduce_zero_label,
    )  # fmt: skip


def _describe_backbone(model: Detector | Segmenter) -> dict[str, Any]:
    backbone = model.backbone
    return {
        "name": backbone.name, "args": backbone.args, "stages": backbone.stages,
        "mean": tuple(model.mean.flatten().tolist()), "std": tuple(model.std.flatten().tolist()),
    }  # fmt: skip


def _detector(description: DetectorDescription) -> Detector:
    return Detector(
        Backbone(description.name, description.args, stages=description.stages), description.head,
        len(description.classes), mean=description.mean, std=description.std, eval_size=description.eval_size,
        max_size=description.max_size,
    )  # fmt: skip


def _segmenter(description: SegmenterDescription) -> Segmenter:
    return Segmenter(
        Backbone(description.name, description.args, stages=description.stages), description.head,
        len(description.classes), mean=description.mean, std=description.std, scale=description.scale,
        ignore_label=description.ignore_label,
    )  # fmt: skip


files.register_builder(DetectorDescription, _detector)
files.register_builder(SegmenterDescription, _segmenter)
