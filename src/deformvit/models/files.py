"""Model files: safetensors whose header says how to build the model and prepare its images. Nothing is executed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from deformvit.errors import UserError
from deformvit.models.dat import WEIGHTS
from deformvit.storage import write_atomically

KEY = "deformvit"


class ModelFileError(UserError):
    """A model file cannot be used; the message says which and why."""


@dataclass
class ModelInfo:
    """What a model file says beside its weights."""

    name: str
    """Name registered with timm."""
    args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the model besides ``num_classes``."""
    classes: list[str] = field(default_factory=list)
    img_size: int = 224
    crop_pct: float = 0.875
    resize: str = "shorter"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    metrics: dict[str, float] = field(default_factory=dict)
    """What was measured with these weights."""
    system: dict[str, Any] = field(default_factory=dict)
    """Of a detector or segmentation network: its head, stages and inputs (:mod:`deformvit.systems`); ``name`` and
    ``args`` are its backbone's. Empty for a classifier."""

    def build(self) -> nn.Module:
        """The model with fresh weights."""
        return timm.create_model(self.name, num_classes=len(self.classes), **self.args)


def packaged() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def save(path: Path, model: nn.Module, info: ModelInfo, dtype: torch.dtype | None = None) -> None:
    """Write a model file, atomically.

    Args:
        dtype: what floating-point weights are stored as; as they are by default.
    """
    tensors = {
        name: tensor.detach().cpu().to(dtype if dtype and tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    header = {KEY: json.dumps(dataclasses.asdict(info))}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=header))


def read(path: Path) -> tuple[dict[str, Tensor], ModelInfo | None]:
    """Weights and, where the file has it, what they belong to.

    Raises:
        ModelFileError: not there, damaged or no safetensors file.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file")
    if path.suffix in (".pth", ".pt", ".bin"):
        raise ModelFileError(f"{path}: a PyTorch checkpoint; `deformvit convert` makes a model file of it")
    try:
        with safe_open(path, framework="pt") as file:
            header: Mapping[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path}: damaged, or not a safetensors file ({error})") from error
    if KEY not in header:
        return tensors, None
    try:
        return tensors, ModelInfo(**json.loads(header[KEY]))
    except (ValueError, TypeError) as error:
        raise ModelFileError(f"{path}: its header does not describe a deformvit model ({error})") from error


def resolve(source: str) -> Path:
    """Path of a file or of packaged weights.

    Raises:
        ModelFileError: neither, with the names there are.
    """
    path = Path(source)
    if path.is_file():
        return path
    inside = WEIGHTS / f"{source}.safetensors"
    if inside.is_file():
        return inside
    known = ", ".join(packaged()) or "none"
    raise ModelFileError(f"{source!r}: no such file, and no packaged weights of that name (there are: {known})")


def short_name(model: str) -> str:
    """What a model is called beside others: runs leave `best.safetensors`, so then by their folder."""
    path = Path(model)
    if path.suffix != ".safetensors":
        return model
    return path.parent.name if path.stem == "best" and path.parent.name else path.stem


def load(source: str) -> tuple[nn.Module, ModelInfo]:
    """The model of a file that :func:`save` wrote, or of packaged weights, in evaluation mode and float32.

    Raises:
        ModelFileError: not there, damaged, without a description, or weights that do not fit it.
    """
    path = resolve(source)
    tensors, info = read(path)
    if info is None:
        raise ModelFileError(f"{path}: has no description of its model; convert it with `deformvit convert`")
    if info.system:
        kind = info.system.get("head", {}).get("system")
        raise ModelFileError(
            f"{path}: holds a {kind} on {info.name}, not a classifier; deformvit.systems.load reads it"
        )
    try:
        model = info.build()
        model.load_state_dict(tensors)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise ModelFileError(f"{path}: weights do not fit {info.name} ({error})") from error
    return model.float().eval(), info
