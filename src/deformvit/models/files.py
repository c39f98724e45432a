"""Model files: safetensors whose header describes the model, so that a file alone can be built, loaded and used.

The header is read and checked before any tensor is (:mod:`deformvit.models.descriptions`), its shapes are compared with
the model's before any memory is allocated for it, and nothing is executed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from deformvit.errors import DescriptionError, UserError
from deformvit.models import descriptions
from deformvit.models.descriptions import ClassifierDescription, Description
from deformvit.models.state import compare, shapes
from deformvit.storage import write_atomically

KEY = "deformvit"
"""The entry of a safetensors header that holds the description, as JSON."""
LONGEST_HEADER = 16 * 2**20
"""Characters of a description; the names of 100,000 classes are a tenth of it."""
PYTORCH_SUFFIXES = (".pth", ".pt", ".bin")
BEST_WEIGHTS = "best.safetensors"
"""The weights of a run with the best evaluation."""
HUB_WEIGHTS = "model.safetensors"
"""The weights of a Hugging Face hub folder, whose ``config.json`` describes the model."""
PACKAGED = Path(__file__).parent / "weights"
"""Folder of the weights that come with the package."""


class ModelFileError(UserError):
    """A model file cannot be used; the message says which and why."""


@dataclass(frozen=True)
class ModelFile:
    """The header of a safetensors file, read and checked; its tensors are read when they are asked for."""

    path: Path
    """Where it is."""
    description: Description | None
    """None for weights that do not say what they belong to."""
    shapes: dict[str, tuple[int, ...]]
    """Shape of every tensor, by its name."""

    def tensors(self) -> dict[str, Tensor]:
        """The weights, on the CPU."""
        with safe_open(self.path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in self.shapes}

    def load_into(self, model: nn.Module) -> None:
        """Load the weights into a model.

        Raises:
            ModelFileError: names or shapes differ from the model's.
        """
        self._must_fit(model)
        model.load_state_dict(self.tensors())

    def build(self) -> nn.Module:
        """The described model with the file's weights, in evaluation mode and float32.

        Raises:
            ModelFileError: no description, or weights that are not the described model's.
        """
        if self.description is None:
            raise ModelFileError(f"{self.path}: has no description of its model; convert it with `deformvit convert`")
        try:
            with torch.device("meta"):  # nothing is allocated before names and shapes are known to fit
                self._must_fit(build(self.description))
            model = build(self.description)
        except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AssertionError) as error:
            if isinstance(error, ModelFileError):
                raise
            raise ModelFileError(
                f"{self.path}: {self.description.name} cannot be built as described ({error})"
            ) from error
        model.load_state_dict(self.tensors())
        return model.float().eval()

    def _must_fit(self, model: nn.Module) -> None:
        if difference := compare(shapes(model.state_dict()), self.shapes):
            name = self.description.name if self.description else type(model).__name__
            raise ModelFileError(f"{self.path}: weights do not fit {name}: {difference}")


def open_model_file(path: Path | str) -> ModelFile:
    """Read and check the header of a safetensors file; the tensors are not read.

    Raises:
        ModelFileError: not there, damaged, not a safetensors file, or an invalid description.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file")
    if path.suffix in PYTORCH_SUFFIXES:
        raise ModelFileError(f"{path}: a PyTorch checkpoint; `deformvit convert` makes a model file of it")
    try:
        with safe_open(path, framework="pt") as file:
            header: Mapping[str, str] = file.metadata() or {}
            shapes_ = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path}: damaged, or not a safetensors file ({error})") from error
    beside = path.with_name("config.json")
    if KEY in header:
        description: Description | None = _parse(f"{path}: its header", header[KEY], descriptions.from_header)
    elif path.name == HUB_WEIGHTS and beside.is_file():
        with beside.open(errors="replace") as config:
            description = _parse(f"{beside}:", config.read(LONGEST_HEADER + 1), descriptions.from_hub_config)
    else:
        description = None
    return ModelFile(path, description, shapes_)


def _parse(where: str, text: str, read: Callable[[Any], Description]) -> Description:
    try:
        if len(text) > LONGEST_HEADER:
            raise DescriptionError(f"longer than {LONGEST_HEADER:,} characters")
        return read(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{where} does not describe a deformvit model ({error})") from error


Builder = Callable[[Any], nn.Module]
_BUILDERS: dict[type, Builder] = {}


def register_builder(kind: type, builder: Builder) -> None:
    """Say what builds the models of a kind of description, with fresh weights."""
    _BUILDERS[kind] = builder


def build(description: Description) -> nn.Module:
    """The described model with fresh weights.

    Raises:
        UserError, ValueError, TypeError, RuntimeError: arguments that contradict one another.
    """
    return _BUILDERS[type(description)](description)


def _build_classifier(description: ClassifierDescription) -> nn.Module:
    model: nn.Module = timm.create_model(description.name, num_classes=len(description.classes), **description.args)
    cfg = {
        **model.pretrained_cfg,  # type: ignore[dict-item]
        **preprocessing_cfg(description, getattr(model, "in_chans", 3)),
    }
    for source in ("file", "url", "hf_hub_id", "hf_hub_filename", "source", "tag", "test_input_size", "test_crop_pct"):
        cfg.pop(source, None)  # those of the registered weights, which these are not
    model.pretrained_cfg = model.default_cfg = cfg  # type: ignore[assignment]
    return model


register_builder(ClassifierDescription, _build_classifier)


def preprocessing_cfg(description: ClassifierDescription, in_chans: int = 3) -> dict[str, Any]:
    """What timm's ``pretrained_cfg`` says of a classifier's images and classes."""
    side = description.img_size
    return {
        "input_size": (in_chans, side, side), "pool_size": None, "interpolation": "bicubic",
        "crop_pct": description.crop_pct, "crop_mode": "squash" if description.resize == "square" else "center",
        "mean": description.mean, "std": description.std, "num_classes": len(description.classes),
        "label_names": list(description.classes) or None,
    }  # fmt: skip


def packaged() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.stem for path in PACKAGED.glob("*.safetensors"))


def resolve(source: str | Path) -> Path:
    """Path of a model's file: itself, packaged weights by name, or the weights in the folder of a run or of the hub.

    Raises:
        ModelFileError: none of these, with the names of the packaged weights.
    """
    path = Path(source)
    if path.is_file():
        return path
    for inside in (path / BEST_WEIGHTS, path / HUB_WEIGHTS):
        if inside.is_file():
            return inside
    if (named := PACKAGED / f"{source}.safetensors").is_file():
        return named
    known = ", ".join(packaged()) or "none"
    if str(source).startswith(("http://", "https://", "hf-hub:")):
        raise ModelFileError(f"{str(source)!r}: an address; download the file and give its path")
    raise ModelFileError(f"{str(source)!r}: no such file, and no packaged weights of that name (there are: {known})")


def short_name(model: str | Path) -> str:
    """What a model is called beside others: a file by its stem, the weights of a run or of the hub by their folder."""
    path = Path(model)
    if path.suffix != ".safetensors":
        return path.name if path.is_dir() else str(model)
    return path.parent.name if path.name in (BEST_WEIGHTS, HUB_WEIGHTS) and path.parent.name else path.stem


def load_model(source: str | Path) -> tuple[nn.Module, Description]:
    """The network of a model file, of packaged weights or of a run's folder, in evaluation mode and float32.

    Of a classifier, ``pretrained_cfg`` has the preprocessing and classes of the file, where timm and its users look.

    Returns:
        The network, and what the file says of it.

    Raises:
        ModelFileError: not there, damaged, without a description, or weights that do not fit it.
    """
    file = open_model_file(resolve(source))
    model = file.build()
    assert file.description is not None  # or build would have raised
    return model, file.description


def save_model(path: str | Path, model: nn.Module, description: Description, dtype: torch.dtype | None = None) -> None:
    """Write a model file, atomically.

    Args:
        path: usually ending in .safetensors.
        model: whose weights to write.
        description: what it is; checked as it will be when the file is read.
        dtype: what floating-point weights are stored as; as they are by default.

    Raises:
        DescriptionError: a description that could not be read again.
    """
    description.check()
    tensors = {
        name: tensor.detach().cpu().to(dtype if dtype and tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    header = {KEY: json.dumps(descriptions.to_header(description))}
    write_atomically(Path(path), lambda temporary: save_file(tensors, temporary, metadata=header))
