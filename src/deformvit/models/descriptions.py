"""What a model file says of its model: one dataclass for each task, checked by name, type and range when it is read.

A description is plain data in the header of a model file (:mod:`deformvit.models.files`), which may come from a
stranger. It names a model of this package or one of :data:`TIMM_MODULES`, and arguments of their constructors; nothing
in it can name an address, a path or a class.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_type_hints

import timm

from deformvit.config import IMAGENET_MEAN, IMAGENET_STD, DetectorConfig, SegmenterConfig
from deformvit.errors import DescriptionError
from deformvit.models.network import DAT
from deformvit.plain import MOST_ITEMS, conform, short

LARGEST_SIDE = 8192
"""Pixels of an image's side that a description may ask for."""
MOST_CLASSES = MOST_ITEMS
MOST_BLOCKS = 1_000
LARGEST_NUMBER = 1e6
"""Of a model's arguments, whatever they are."""

TIMM_MODULES = (
    "swin_transformer", "swin_transformer_v2", "convnext", "resnet", "regnet", "pvt_v2", "vision_transformer", "deit",
    "efficientnet", "mobilenetv3", "edgenext", "densenet", "hiera", "hrnet", "focalnet", "davit", "maxxvit", "mvitv2",
    "nest", "metaformer", "efficientvit_mit", "fastvit", "repvit", "tiny_vit", "inception_next", "mambaout", "xcit",
)  # fmt: skip
"""timm's files whose models a model file may name: usual backbones, which build offline from plain numbers."""
TIMM_ARGUMENTS: dict[str, Any] = {
    "img_size": int | Sequence[int], "in_chans": int, "patch_size": int | Sequence[int],
    "window_size": int | Sequence[int],
    "embed_dim": int, "embed_dims": Sequence[int], "dims": Sequence[int], "channels": Sequence[int],
    "depth": int, "depths": Sequence[int], "layers": Sequence[int], "num_heads": int | Sequence[int],
    "mlp_ratio": float | Sequence[float], "mlp_ratios": Sequence[float], "sr_ratios": Sequence[int],
    "class_token": bool, "qkv_bias": bool, "global_pool": str, "output_stride": int, "base_width": int,
    "cardinality": int, "stem_width": int, "drop_rate": float, "proj_drop_rate": float, "attn_drop_rate": float,
    "drop_path_rate": float, "dynamic_img_size": bool, "strict_img_size": bool, "always_partition": bool,
}  # fmt: skip
"""Arguments of timm's models that a model file may give, and their types."""

Task = Literal["classification", "detection", "segmentation"]
Resize = Literal["shorter", "square"]


@dataclass(kw_only=True)
class _Description:
    name: str
    """Registered name of the model, or of the backbone of a detector or segmenter."""
    args: dict[str, Any] = field(default_factory=dict)
    """Arguments of its constructor besides ``num_classes``."""
    classes: list[str] = field(default_factory=list)
    """Names of the classes, in the order of the labels."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean of the RGB channels, from 0 to 1."""
    std: tuple[float, ...] = IMAGENET_STD
    """Standard deviation of the RGB channels."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What was measured with these weights."""

    task: ClassVar[Task]
    """What the model predicts."""

    def check(self) -> None:
        """Check that every field has its type and a possible value.

        Raises:
            DescriptionError: one has not; the message names it.
        """
        hints = get_type_hints(type(self))
        for entry in dataclasses.fields(self):
            value = conform(getattr(self, entry.name), hints[entry.name], entry.name)
            setattr(self, entry.name, value)
        self.args = check_arguments(self.name, self.args)
        if len(self.classes) > MOST_CLASSES:
            raise DescriptionError(f"classes: at most {MOST_CLASSES:,}, got {len(self.classes):,}")
        for name, channels in {"mean": self.mean, "std": self.std}.items():
            if len(channels) != 3:
                raise DescriptionError(f"{name}: expected three numbers, got {short(channels)}")
        if min(self.std) <= 0:
            raise DescriptionError(f"std: expected positive numbers, got {self.std}")


@dataclass(kw_only=True)
class ClassifierDescription(_Description):
    """A classifier, or (without classes) a backbone that :meth:`~deformvit.DAT.forward_intermediates` reads."""

    img_size: int = 224
    """Side of the square that the network sees, in pixels."""
    crop_pct: float = 0.875
    """The square is the middle of an image resized to ``img_size / crop_pct``."""
    resize: Resize = "shorter"
    """Whether the shorter side is resized to that, or both sides (which distorts; the released code)."""

    task: ClassVar[Task] = "classification"

    def check(self) -> None:
        super().check()
        _in_range("img_size", self.img_size, 1, LARGEST_SIDE)
        if not 0 < self.crop_pct <= 1:
            raise DescriptionError(f"crop_pct: expected a number above 0 and at most 1, got {self.crop_pct}")


@dataclass(kw_only=True)
class DetectorDescription(_Description):
    """A detector (:class:`deformvit.systems.Detector`)."""

    head: DetectorConfig
    """What stands on the backbone."""
    stages: tuple[int, ...]
    """Stages of the backbone that feed the pyramid, counted from 1."""
    eval_size: int = 800
    """Shorter side that images are resized to, in pixels; 0 leaves them at their own size."""
    max_size: int = 1333
    """Longest side that images are resized to, in pixels."""

    task: ClassVar[Task] = "detection"

    def check(self) -> None:
        super().check()
        _in_range("eval_size", self.eval_size, 0, LARGEST_SIDE)
        _in_range("max_size", self.max_size, 1, LARGEST_SIDE)
        _check_head(self.head)


@dataclass(kw_only=True)
class SegmenterDescription(_Description):
    """A segmentation network (:class:`deformvit.systems.Segmenter`)."""

    head: SegmenterConfig
    """What stands on the backbone."""
    stages: tuple[int, ...]
    """Stages of the backbone, counted from 1."""
    scale: tuple[int, int] = (512, 2048)
    """Shorter and longer side that images are resized to fit, in pixels; 0 and 0 leave them at their own size."""
    ignore_label: int = 255
    """Label of pixels that do not count."""
    reduce_zero_label: bool = False
    """Whether label 0 of the data it was trained on means "other", and classes count from 1."""

    task: ClassVar[Task] = "segmentation"

    def check(self) -> None:
        super().check()
        for side in self.scale:
            _in_range("scale", side, int(any(self.scale)), LARGEST_SIDE)
        _check_head(self.head)


Description = ClassifierDescription | DetectorDescription | SegmenterDescription


def from_header(header: Any) -> Description:
    """The description that a model file's header holds.

    Raises:
        DescriptionError: an unknown or missing field, or a value of another type or outside of its range.
    """
    values = dict(conform(header, dict[str, Any], "header"))
    system = values.pop("system", None) or {}
    if not system:
        return _make(ClassifierDescription, values)
    # In the header of a detector or segmenter, what a classifier does not have is one level down.
    for name in ("img_size", "crop_pct", "resize"):
        values.pop(name, None)
    system = dict(conform(system, dict[str, Any], "system"))
    head = conform(system.pop("head", None), dict[str, Any], "system.head")
    values |= conform(system.pop("inputs", {}), dict[str, Any], "system.inputs") | system
    kind = conform(head.get("system"), str, "system.head.system")
    if kind in _choices(DetectorConfig):
        return _make(DetectorDescription, {**values, "head": _make_head(DetectorConfig, head)})
    if kind in _choices(SegmenterConfig):
        return _make(SegmenterDescription, {**values, "head": _make_head(SegmenterConfig, head)})
    known = ", ".join((*_choices(DetectorConfig), *_choices(SegmenterConfig)))
    raise DescriptionError(f"system.head.system: expected one of {known}, got {kind!r}")


def from_hub_config(config: Any) -> ClassifierDescription:
    """The description that ``config.json`` of a Hugging Face hub folder holds, as timm writes it.

    Raises:
        DescriptionError: as :func:`from_header`.
    """
    config = conform(config, dict[str, Any], "config.json")
    cfg = conform(config.get("pretrained_cfg", {}), dict[str, Any], "pretrained_cfg")
    count = conform(config.get("num_classes", cfg.get("num_classes", 1000)), int, "num_classes")
    _in_range("num_classes", count, 0, MOST_CLASSES)
    names = config.get("label_names") or cfg.get("label_names") or [str(i) for i in range(count)]
    if isinstance(names, Mapping):  # by the number of the class, as text
        names = [names.get(str(i)) for i in range(count)]
    if len(names) != count:
        raise DescriptionError(f"label_names: expected {count}, one for each class, got {len(names)}")
    size = conform(cfg.get("input_size", [3, 224, 224]), tuple[int, int, int], "pretrained_cfg.input_size")
    args = dict(conform(config.get("model_args", {}), dict[str, Any], "model_args"))
    args.pop("num_classes", None)
    values = {
        "name": config.get("architecture"), "args": args, "classes": names, "img_size": size[-1],
        "crop_pct": cfg.get("crop_pct", 0.875), "resize": "square" if cfg.get("crop_mode") == "squash" else "shorter",
        "mean": cfg.get("mean", IMAGENET_MEAN), "std": cfg.get("std", IMAGENET_STD),
    }  # fmt: skip
    return _make(ClassifierDescription, values)


def to_header(description: Description) -> dict[str, Any]:
    """JSON-ready values, as :func:`from_header` reads them."""
    values = dataclasses.asdict(description)
    if isinstance(description, ClassifierDescription):
        return values
    shared = {entry.name for entry in dataclasses.fields(_Description)}
    inputs = {name: values.pop(name) for name in list(values) if name not in shared | {"head", "stages"}}
    return values | {"system": {"head": values.pop("head"), "stages": values.pop("stages"), "inputs": inputs}}


def check_arguments(name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a registered model, their sequences as tuples.

    Raises:
        DescriptionError: a model that a file may not name, or an argument that it does not have or of another type.
    """
    if not isinstance(name, str) or ":" in name or "/" in name or not timm.is_model(name):
        raise DescriptionError(f"name: there is no model {str(name)[:100]!r}")
    if is_ours(name):
        known = get_type_hints(DAT.__init__)
        known = {n: known[n] for n in inspect.signature(DAT.__init__).parameters if n in known} | {"num_classes": None}
    elif timm.models.is_model_in_modules(name, TIMM_MODULES):
        known = TIMM_ARGUMENTS
    else:
        raise DescriptionError(
            f"name: {name} is not one of the models that a file may name, see models/descriptions.py"
        )
    checked = {}
    for argument, value in args.items():
        if known.get(argument) is None:
            raise DescriptionError(f"args: {name} takes no argument {str(argument)[:100]!r} from a file")
        checked[argument] = conform(value, known[argument], f"args.{argument}")
        _limit(checked[argument], f"args.{argument}")
    for argument in ("depths", "layers"):
        if argument in checked and sum(checked[argument]) > MOST_BLOCKS:
            raise DescriptionError(f"args.{argument}: at most {MOST_BLOCKS} blocks, got {sum(checked[argument])}")
    if checked.get("depth", 0) > MOST_BLOCKS:
        raise DescriptionError(f"args.depth: at most {MOST_BLOCKS} blocks, got {checked['depth']}")
    return checked


def is_ours(name: str) -> bool:
    """Whether a registered name is of this package (:mod:`deformvit.models.dat`)."""
    return timm.models.is_model_in_modules(name, ["dat"])


_D = TypeVar("_D", ClassifierDescription, DetectorDescription, SegmenterDescription)
_H = TypeVar("_H", DetectorConfig, SegmenterConfig)


def _make(kind: type[_D], values: Mapping[str, Any]) -> _D:
    _check_names(kind, values, "")
    description = kind(**values)
    description.check()
    return description


def _make_head(kind: type[_H], values: Mapping[str, Any]) -> _H:
    _check_names(kind, values, "system.head.")
    hints = get_type_hints(kind)
    return kind(**{name: conform(value, hints[name], f"system.head.{name}") for name, value in values.items()})


def _check_names(kind: type, values: Mapping[str, Any], where: str) -> None:
    known = {entry.name: entry for entry in dataclasses.fields(kind)}
    for name in values:
        if name not in known:
            raise DescriptionError(f"unknown field {where}{str(name)[:100]}")
    for name, entry in known.items():
        optional = entry.default is not dataclasses.MISSING or entry.default_factory is not dataclasses.MISSING
        if not optional and name not in values:
            raise DescriptionError(f"{where}{name} is missing")


def _check_head(head: DetectorConfig | SegmenterConfig) -> None:
    for entry in dataclasses.fields(head):
        _limit(getattr(head, entry.name), f"head.{entry.name}")


def _choices(config: type[DetectorConfig | SegmenterConfig]) -> tuple[str, ...]:
    return get_args(get_type_hints(config)["system"])


def _in_range(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise DescriptionError(f"{name}: expected {least} to {most}, got {short(value)}")


def _limit(value: Any, where: str) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, tuple):
            _limit(number, where)
        elif isinstance(number, int | float) and abs(number) > LARGEST_NUMBER:
            raise DescriptionError(f"{where}: at most {LARGEST_NUMBER:g}, got {short(number)}")
