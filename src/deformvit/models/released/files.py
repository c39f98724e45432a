"""Released checkpoint files on disk -> model files of ours; the work of ``deformvit convert``."""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from deformvit.models import files
from deformvit.models.descriptions import ClassifierDescription
from deformvit.models.released.config import released_args
from deformvit.models.released.weights import ConversionError, has_output_norms, load_released, unwrap


class _Inert:
    """Stands in for the configuration objects that training scripts pickle beside weights; does nothing.

    Torch's restricted reader fills only plain mappings, so that is what an instance is.
    """

    def __new__(cls, *_args: Any, **_kwargs: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


_DAMAGE = (
    RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError, OSError,
    struct.error, zipfile.BadZipFile,
)  # fmt: skip
"""What torch.load raises on files cut at one place or another."""
_INERT = ("yacs.config.CfgNode", "argparse.Namespace")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The mapping in a ``.pth`` or ``.safetensors`` file, without executing what a pickle holds.

    Raises:
        ConversionError: the file is missing, empty, truncated, or holds objects other than tensors and plain values.
    """
    if not path.is_file():
        raise ConversionError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise ConversionError(f"{path}: the file is empty")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with torch.serialization.safe_globals([(_Inert, name) for name in _INERT]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ConversionError(f"{path}: damaged, truncated or not a safetensors file ({error})") from error
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise ConversionError(
                f"{path}: holds {found[1]} besides weights; loading it could execute code, so the file is refused"
            ) from error
        raise ConversionError(f"{path}: damaged, truncated or not a checkpoint ({_first_line(error)})") from error
    except _DAMAGE as error:
        raise ConversionError(f"{path}: damaged, truncated or not a checkpoint ({_first_line(error)})") from error
    if not isinstance(checkpoint, Mapping):
        raise ConversionError(f"{path}: expected a mapping of weights, found {type(checkpoint).__name__}")
    return dict(checkpoint)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def convert_file(
    source: Path,
    target: Path,
    model: str = "",
    config: Path | None = None,
    classes: Path | None = None,
    dtype: str = "keep",
    image_args: Mapping[str, str] | None = None,
) -> str:
    """Convert a checkpoint file into a model file of :mod:`deformvit.models.files`; the command ``deformvit convert``.

    Args:
        source: a released ``.pth`` (or its weights as safetensors), or a model file of ours.
        target: the ``.safetensors`` file to write, atomically.
        model: registered name that the weights belong to. Position tables are interpolated to its nominal size.
        config: a released YAML instead of ``model``.
        classes: text file of class names, one a line; class numbers otherwise.
        dtype: "keep", "float32", "float16" or "bfloat16".
        image_args: ``img_size``, ``crop_pct`` and ``resize`` of the evaluation; by default the model's own.

    Returns:
        A line that says what was written.

    Raises:
        ConversionError: whatever does not fit, named with the file.
    """
    if target.suffix != ".safetensors":
        raise ConversionError(f"{target}: expected a name ending in .safetensors")
    weights = read_checkpoint(source)
    known = files.open_model_file(source).description if source.suffix == ".safetensors" else None
    if known is not None and not isinstance(known, ClassifierDescription):
        raise ConversionError(f"{source}: a {known.task} network of ours already; there is nothing to convert")
    info = _describe(source, weights, known, model, config)
    if classes is not None:
        info.classes = _read_classes(classes, len(info.classes))
    for name, text in (image_args or {}).items():
        if name not in ("img_size", "crop_pct", "resize"):
            raise ConversionError(f"image_args: unknown {name!r}; expected img_size, crop_pct or resize")
        try:
            value = type(getattr(info, name))(text)
        except ValueError as error:
            raise ConversionError(f"image_args: {name} must be a number, got {text!r}") from error
        if (name == "resize" and value not in ("shorter", "square")) or (name != "resize" and value <= 0):
            raise ConversionError(f"image_args: {name} cannot be {text!r}")
        setattr(info, name, value)
    try:
        network = files.build(info)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConversionError(f"model {info.name!r}: {error}") from error
    try:
        load_released(network, weights)
    except ConversionError as error:
        raise ConversionError(f"{source}: {error}") from error
    stored = None if dtype == "keep" else getattr(torch, dtype)
    files.save_model(target, network, info, stored)
    count = sum(parameter.numel() for parameter in network.parameters())
    return f"{info.name}, {count:,} parameters, {len(info.classes)} classes"


def _describe(
    source: Path, weights: Mapping[str, Any], known: ClassifierDescription | None, model: str, config: Path | None
) -> ClassifierDescription:
    if model and config:
        raise ConversionError("model and config are both given; choose one")
    if config is not None:
        try:
            mapping = yaml.safe_load(config.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConversionError(f"{config}: not readable as YAML ({_first_line(error)})") from error
        if not isinstance(mapping, Mapping):
            raise ConversionError(f"{config}: expected a mapping, found {type(mapping).__name__}")
        arguments = released_args(mapping)
        count = arguments.pop("num_classes")
        data, test = (section if isinstance(section := mapping.get(key), Mapping) else {} for key in ("DATA", "TEST"))
        size = data.get("IMG_SIZE", arguments["img_size"])  # DAT++ at 384 keeps the tables of 224
        if type(size) is not int or size < 1:
            raise ConversionError(f"{config}: DATA.IMG_SIZE: expected a positive size, got {size!r}")
        cropped = test.get("CROP", True)
        crop_pct = size / int(256 / 224 * size) if cropped else 1.0  # the released evaluation, at every size
        if has_output_norms(weights):  # the backbone of a detector or segmenter
            arguments["output_norms"], count = True, 0
        return ClassifierDescription(
            name="dat_tiny", args=arguments, classes=_numbers(count), img_size=size, crop_pct=crop_pct, resize="square"
        )
    if not model:
        if known is None:
            raise ConversionError(f"{source}: does not say which model it belongs to; give model or config")
        return known
    if not timm.is_model(model):
        raise ConversionError(f"model {model!r} is not registered; ours are {', '.join(timm.list_models('dat*'))}")
    cfg = timm.get_pretrained_cfg(model)
    head = next((unwrap(weights)[key] for key in ("cls_head.weight", "head.fc.weight") if key in unwrap(weights)), None)
    count = head.shape[0] if isinstance(head, Tensor) else cfg.num_classes
    args: dict[str, Any] = {}
    if has_output_norms(weights):
        args["output_norms"], count = True, 0
    names = known.classes if known is not None and len(known.classes) == count else _numbers(count)
    return ClassifierDescription(
        name=model,
        args=args,
        classes=names,
        img_size=cfg.input_size[-1],
        crop_pct=cfg.crop_pct,
        resize="square",
        mean=cfg.mean,
        std=cfg.std,
    )


def _numbers(count: int) -> list[str]:
    return [str(i) for i in range(count)]


def _read_classes(path: Path, count: int) -> list[str]:
    try:
        names = path.read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(f"{path}: not readable as text ({_first_line(error)})") from error
    names = [name.strip() for name in names if name.strip()]
    if len(names) != count:
        raise ConversionError(f"{path}: {len(names)} class names, but the model has {count} classes")
    return names
