"""Systems from configurations and from model files, and what a model file says of a system."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from torch import nn

from deformvit.config import DetectionConfig, DetectorConfig, SegmentationConfig, SegmenterConfig
from deformvit.errors import UserError
from deformvit.models import files
from deformvit.models.files import ModelFileError, ModelInfo
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
        UserError: weights of another architecture; of other classes only those layers start anew.
    """
    head, data, model = config.head, config.data, config.model
    whole = _is_system(model.checkpoint)
    backbone = Backbone(
        model.name, args, stages=head.stages or DEFAULT_STAGES[head.system], drop_path_rate=model.drop_path_rate,
        checkpoint="" if whole else model.checkpoint,
    )  # fmt: skip
    detector = Detector(
        backbone, head, classes, mean=data.mean, std=data.std, eval_size=data.eval_size, max_size=data.max_size
    )
    if whole:
        _start(detector, files.resolve(model.checkpoint))
    return detector


def build_segmenter(config: SegmentationConfig, classes: int, args: dict[str, Any] | None = None) -> Segmenter:
    """The segmentation network of a run, as :func:`build_detector`."""
    data, model = config.data, config.model
    whole = _is_system(model.checkpoint)
    backbone = Backbone(
        model.name, args, stages=STAGES, drop_path_rate=model.drop_path_rate,
        checkpoint="" if whole else model.checkpoint,
    )  # fmt: skip
    segmenter = Segmenter(
        backbone, config.head, classes, mean=data.mean, std=data.std, scale=data.scale, ignore_label=data.ignore_label
    )
    if whole:
        _start(segmenter, files.resolve(model.checkpoint))
    return segmenter


def _is_system(checkpoint: str) -> bool:
    """Whether a checkpoint is a whole detector or segmentation network, not a classifier for its backbone."""
    if not checkpoint or (path := files.resolve(checkpoint)).suffix != ".safetensors":
        return False
    info = files.read(path)[1]
    return info is not None and bool(info.system)


def _start(model: nn.Module, path: Path) -> None:
    tensors, _ = files.read(path)
    expected = model.state_dict()
    for names, what in ((expected.keys() - tensors.keys(), "lacks"), (tensors.keys() - expected.keys(), "has")):
        if names:
            raise UserError(f"{path}: another architecture than this run's: it {what} {sorted(names)[0]}")
    fitting = {name: value for name, value in tensors.items() if value.shape == expected[name].shape}
    if other := sorted(tensors.keys() - fitting.keys()):
        print(
            f"deformvit: {path}: {len(other)} weights of other shapes start anew: {', '.join(other)}", file=sys.stderr
        )
    model.load_state_dict(fitting, strict=False)


def describe(model: Detector | Segmenter, classes: list[str], metrics: dict[str, float], **inputs: Any) -> ModelInfo:
    """What a model file says of a system, enough to build it again; ``inputs`` is more to know of its data."""
    body = model.backbone
    if isinstance(model, Segmenter):
        inputs |= {"scale": list(model.scale), "ignore_label": model.ignore_label}
    else:
        inputs |= {"eval_size": model.eval_size, "max_size": model.max_size}
    return ModelInfo(
        name=body.name, args=body.args, classes=classes, metrics=metrics,
        mean=tuple(model.mean.flatten().tolist()), std=tuple(model.std.flatten().tolist()),
        system={"head": dataclasses.asdict(model.config), "stages": list(body.stages), "inputs": inputs},
    )  # fmt: skip


def from_info(info: ModelInfo) -> Detector | Segmenter:
    """The system that a model file describes, with fresh weights."""
    head: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in info.system["head"].items()}
    inputs: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in info.system["inputs"].items()}
    inputs.pop("reduce_zero_label", None)  # of the data, for whoever evaluates
    args = {name: value for name, value in info.args.items() if name not in ("pretrained", "pretrained_cfg_overlay")}
    backbone = Backbone(info.name, args, stages=info.system["stages"])
    common: dict[str, Any] = {"mean": info.mean, "std": info.std, **inputs}
    if head["system"] in DEFAULT_STAGES:
        return Detector(backbone, DetectorConfig(**head), len(info.classes), **common)
    return Segmenter(backbone, SegmenterConfig(**head), len(info.classes), **common)


def load(source: str) -> tuple[nn.Module, ModelInfo]:
    """The model of any file that training wrote, classifiers included, in evaluation mode and float32.

    Raises:
        ModelFileError: not there, damaged, without a description, or weights that do not fit it.
    """
    path = files.resolve(source)
    tensors, info = files.read(path)
    if info is None or not info.system:
        return files.load(source)
    try:
        model = from_info(info)
        model.load_state_dict(tensors)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise ModelFileError(
            f"{path}: weights do not fit its {info.system.get('head')} on {info.name} ({error})"
        ) from error
    return model.float().eval(), info
