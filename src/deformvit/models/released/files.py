"""Released checkpoints on disk: reading them without executing anything, and converting them to model files."""

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
from torch import Tensor, nn

from deformvit.errors import DescriptionError
from deformvit.models import files
from deformvit.models.descriptions import ClassifierDescription
from deformvit.models.released.config import released_args
from deformvit.models.released.names import registered_name
from deformvit.models.released.weights import ConversionError, has_output_norms, load_released, unwrap


class _Inert:
    """Replaces the configuration objects that training scripts pickle beside weights.

    Torch's restricted unpickler fills plain mappings only, so an instance is an empty one.
    """

    def __new__(cls, *_args: Any, **_kwargs: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


_REPLACED = ("yacs.config.CfgNode", "argparse.Namespace")
"""Classes that :class:`_Inert` replaces; any other class is refused."""
_DAMAGED = (
    RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError, OSError,
    struct.error, zipfile.BadZipFile,
)  # fmt: skip
"""What torch.load raises for truncated files, depending on where they end."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The mapping in a ``.pth`` or ``.safetensors`` file; nothing that a pickle holds is executed.

    Raises:
        ConversionError: the file is missing, empty, truncated, or holds objects other than tensors and plain values.
    """
    _must_be_file(path)
    if path.stat().st_size == 0:
        raise ConversionError(f"{path}: the file is empty")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with torch.serialization.safe_globals([(_Inert, name) for name in _REPLACED]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ConversionError(f"{path}: damaged, truncated or not a safetensors file ({error})") from error
    except pickle.UnpicklingError as error:
        if match := re.search(r"GLOBAL (\S+)", str(error)):
            raise ConversionError(
                f"{path}: holds {match[1]} besides weights; loading it could execute code, so the file is refused"
            ) from error
        raise ConversionError(f"{path}: damaged, truncated or not a checkpoint ({_first_line(error)})") from error
    except _DAMAGED as error:
        raise ConversionError(f"{path}: damaged, truncated or not a checkpoint ({_first_line(error)})") from error
    if not isinstance(checkpoint, Mapping):
        raise ConversionError(f"{path}: expected a mapping of weights, got {type(checkpoint).__name__}")
    return dict(checkpoint)


def _must_be_file(path: Path) -> None:
    """Raise an error that says what is there instead of a file."""
    if path.is_file():
        return
    if path.parts[:1] in (("http:",), ("https:",)):
        raise ConversionError(f"{path.parts[0]}//{'/'.join(path.parts[1:])}: an address; download the file first")
    raise ConversionError(f"{path}: {'not a file' if path.exists() else 'no such file'}")


def _first_line(error: BaseException) -> str:
    text = "" if isinstance(error, LookupError) else str(error).strip()  # what is looked up in vain says nothing
    return (text or type(error).__name__).splitlines()[0]


def load_checkpoint(
    source: Path, model: str = "", config: Path | None = None
) -> tuple[nn.Module, ClassifierDescription]:
    """The model of a checkpoint with its weights, and its description.

    Args:
        source: a released ``.pth`` file, its weights as safetensors, or a model file of a classifier.
        model: registered name of the model. Position tables are interpolated to its nominal size.
        config: the released YAML file of the checkpoint, instead of ``model``.

    Raises:
        ConversionError: wrong arguments, an unreadable file, or weights that do not fit; the message names the file.
    """
    if model and config:
        raise ConversionError("--model and --config are both given; one is enough")
    weights = read_checkpoint(source)
    described = files.open_model_file(source).description if source.suffix == ".safetensors" else None
    if described is not None and not isinstance(described, ClassifierDescription):
        raise ConversionError(f"{source}: a model file for {described.task} already; there is nothing to convert")
    if config is not None:
        description = _from_yaml(config, weights)
    elif model:
        description = _from_name(model, weights, described)
    elif described is not None:
        description = described
    else:
        raise ConversionError(
            f"{source}: does not say which model it is of; give --model, a name such as dat_tiny, or --config, the "
            f"released YAML file"
        )
    try:
        description.check()
        network = files.build(description)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConversionError(f"{config or source}: {description.name} cannot be built: {error}") from error
    try:
        load_released(network, weights)
    except ConversionError as error:
        raise ConversionError(f"{source}: not weights of {description.name}: {error}") from error
    return network, description


def yaml_beside(path: Path) -> Path | None:
    """The released YAML file of a checkpoint, where it lies beside it: the same name, ending in .yaml or .yml."""
    return next((found for found in map(path.with_suffix, (".yaml", ".yml")) if found.is_file()), None)


def describe(path: Path) -> ClassifierDescription | None:
    """What the YAML file beside a checkpoint says of it; None without such a file.

    Raises:
        ConversionError: an unreadable file of the two.
    """
    config = yaml_beside(path)
    return _from_yaml(config, read_checkpoint(path)) if config else None


def convert_file(
    source: Path,
    target: Path,
    model: str = "",
    config: Path | None = None,
    classes: Path | None = None,
    dtype: str = "keep",
    image_args: Mapping[str, str] | None = None,
) -> str:
    """Convert a checkpoint to a model file (:mod:`deformvit.models.files`); the command ``deformvit convert``.

    Args:
        source: as in :func:`load_checkpoint`, and ``model`` and ``config`` too.
        target: the ``.safetensors`` file to write, atomically.
        model: registered name of the model.
        config: the released YAML file of the checkpoint.
        classes: text file with a class name on each line; by default classes are named by their numbers.
        dtype: "keep", "float32", "float16" or "bfloat16".
        image_args: ``img_size``, ``crop_pct`` and ``resize`` of the evaluation; by default as published.

    Returns:
        Name, number of parameters and number of classes of the model, as text.

    Raises:
        ConversionError: as :func:`load_checkpoint`, or values of ``image_args`` out of range.
    """
    if target.suffix != ".safetensors":
        raise ConversionError(f"{target}: the file to write must end in .safetensors")
    network, description = load_checkpoint(source, model, config)
    if classes is not None:
        description.classes = _read_classes(classes, len(description.classes))
    _set_image_args(description, image_args or {})
    files.save_model(target, network, description, None if dtype == "keep" else getattr(torch, dtype))
    count = sum(parameter.numel() for parameter in network.parameters())
    return f"{description.name}, {count:,} parameters, {len(description.classes)} classes"


def _from_yaml(path: Path, weights: Mapping[str, Any]) -> ClassifierDescription:
    """The model that a released YAML file configures, under its registered name."""
    _must_be_file(path)
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConversionError(f"{path}: not readable as YAML ({_first_line(error)})") from error
    if not isinstance(config, Mapping):
        raise ConversionError(f"{path}: expected a mapping, got {type(config).__name__}")
    try:
        arguments = released_args(config)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error
    data, test = (section if isinstance(section := config.get(key), Mapping) else {} for key in ("DATA", "TEST"))
    img_size = data.get("IMG_SIZE", arguments["img_size"])  # DAT++ at 384 keeps the tables, and the img_size, of 224
    if type(img_size) is not int or img_size < 1:
        raise ConversionError(f"{path}: DATA.IMG_SIZE: expected a positive integer, got {img_size!r}")
    name, args = registered_name(arguments, img_size)
    classes = arguments["num_classes"]
    if has_output_norms(weights):  # the backbone of a detector or segmenter
        args["output_norms"], classes = True, 0
    return ClassifierDescription(
        name=name,
        args=args,
        classes=_numbered(classes),
        img_size=img_size,
        # As the released code evaluates: at every size, resized by 256 / 224 and cropped.
        crop_pct=img_size / int(256 / 224 * img_size) if test.get("CROP", True) else 1.0,
        resize="square",
    )


def _from_name(name: str, weights: Mapping[str, Any], described: ClassifierDescription | None) -> ClassifierDescription:
    """A registered model, with as many classes as the weights have, named as ``described`` if that fits."""
    if not timm.is_model(name):
        known = ", ".join(timm.list_models(module="dat"))
        raise ConversionError(f"--model {name}: there is no such model; ours are {known}")
    cfg = timm.get_pretrained_cfg(name)
    args: dict[str, Any] = {}
    classes = cfg.num_classes
    if has_output_norms(weights):  # the backbone of a detector or segmenter
        args["output_norms"], classes = True, 0
    else:
        unwrapped = unwrap(weights)
        for key in ("cls_head.weight", "head.fc.weight"):
            if isinstance(classifier := unwrapped.get(key), Tensor):
                classes = classifier.shape[0]
    same_classes = described is not None and len(described.classes) == classes
    return ClassifierDescription(
        name=name,
        args=args,
        classes=described.classes if described is not None and same_classes else _numbered(classes),
        img_size=cfg.input_size[-1],
        crop_pct=cfg.crop_pct,
        resize="square",
        mean=cfg.mean,
        std=cfg.std,
    )


def _numbered(count: int) -> list[str]:
    return [str(i) for i in range(count)]


def _set_image_args(description: ClassifierDescription, image_args: Mapping[str, str]) -> None:
    for name, text in image_args.items():
        if name not in ("img_size", "crop_pct", "resize"):
            raise ConversionError(f"--image-args {name}: unknown; expected img_size, crop_pct or resize")
        try:
            setattr(description, name, type(getattr(description, name))(text))
        except ValueError as error:
            raise ConversionError(f"--image-args {name}: expected a number, got {text!r}") from error
    try:
        description.check()
    except DescriptionError as error:
        raise ConversionError(f"--image-args {error}") from error


def _read_classes(path: Path, count: int) -> list[str]:
    _must_be_file(path)
    try:
        lines = path.read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(f"{path}: not readable as text ({_first_line(error)})") from error
    names = [line.strip() for line in lines if line.strip()]
    if len(names) != count:
        raise ConversionError(f"{path}: {len(names)} class names, but the model has {count} classes")
    return names
