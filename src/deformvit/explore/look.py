"""One image through one model, with everything that is shown of it afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as images_v2

from deformvit import systems
from deformvit.data import eval_transform
from deformvit.data.images import decode
from deformvit.errors import UserError
from deformvit.models import trace
from deformvit.models.files import ModelInfo
from deformvit.models.trace import Trace

DISPLAY = 672
"""Pixels of the shorter side that a picture on the page has, where the image has as many."""


@dataclass(frozen=True)
class Found:
    """One line of what a model says of an image."""

    name: str
    value: float
    """From 0 to 1: the length of its bar."""
    text: str


@dataclass(frozen=True)
class Look:
    """What a model made of an image."""

    seen: Tensor
    """(3, H, W) from 0 to 1, what the network was given before normalisation."""
    drawn: Tensor
    """(3, H, W) the same with boxes, masks or labels on it."""
    found: list[Found]
    title: str
    """The most important of it, in a few words; empty for a model without classes."""
    trace: Trace

    @property
    def hw(self) -> tuple[int, int]:
        """(H, W) of what the network saw, in whose pixels points are given."""
        return self.seen.shape[-2], self.seen.shape[-1]


def upright(source: Path | bytes | Image.Image, name: str = "") -> Image.Image:
    """A file, its bytes or a decoded image -> RGB, turned as the camera was held.

    Raises:
        UnreadableImage: it is no image, or a damaged one.
    """
    if isinstance(source, Image.Image):
        return source
    return decode(source, name or str(source), upright=True)


def prepare(source: Path | bytes | Image.Image, info: ModelInfo) -> Tensor:
    """What a classifier sees of an image: normalised, (3, img_size, img_size)."""
    transform = eval_transform(info.img_size, info.crop_pct, info.resize, info.mean, info.std)
    return transform(upright(source))


def pixels(source: Path | bytes | Image.Image) -> Tensor:
    """What detectors and segmentation networks are given: (3, H, W), RGB from 0 to 1."""
    return images_v2.to_dtype(images_v2.pil_to_tensor(upright(source)), scale=True)


def look(
    network: nn.Module,
    info: ModelInfo,
    source: Path | bytes | Image.Image,
    *,
    threshold: float = 0.5,
    scale: float = 1.0,
    size: Sequence[int] | None = None,
    top: int = 5,
) -> Look:
    """Pass an image through a model and keep what is worth showing.

    Args:
        network: of :func:`deformvit.systems.load`, on its device.
        info: what its file says.
        source: a file, its bytes, or a decoded image.
        threshold: detectors: score from which objects count.
        scale: of the offsets, see :func:`deformvit.models.trace.scale_offsets`.
        size: classifiers and backbones: (H, W) that the whole image is resized to; by default they see what they are
            evaluated on.
        top: classes to name.

    Raises:
        UserError: an image that cannot be read, or a size that the model cannot be given.
    """
    if size is not None and (
        isinstance(network, systems.Detector | systems.Segmenter) or len(size) != 2 or min(size) < 1
    ):
        raise UserError(f"size must be a height and a width, for a classifier or backbone; got {tuple(size)}")
    place = next(network.parameters()).device
    if isinstance(network, systems.Detector | systems.Segmenter):
        image = pixels(source)
        height, width = network.input_size(image.shape[1], image.shape[2])
        seen = images_v2.resize(image, [height, width], antialias=True)
    elif size is not None:
        seen = images_v2.resize(pixels(source), list(size), images_v2.InterpolationMode.BICUBIC, antialias=True)
        seen = seen.clamp(0, 1)
    else:
        seen = prepare(source, info) * _channels(info.std) + _channels(info.mean)
    with torch.inference_mode(), trace.scale_offsets(network, scale), trace.record(network) as recorded:
        if isinstance(network, systems.Detector):
            result = {key: value.cpu() for key, value in network([seen.to(place)])[0].items()}
            drawn, found, title = _objects(seen, result, info, threshold)
        elif isinstance(network, systems.Segmenter):
            drawn, found, title = _labels(seen, network.predict(seen.to(place)).cpu(), info)
        else:
            given = (seen - _channels(info.mean)) / _channels(info.std)
            drawn, (found, title) = seen, _classes(network(given[None].to(place)), info, top)
    return Look(seen, drawn, found, title, recorded)


def display(source: Path | bytes | Image.Image, info: ModelInfo, seen_hw: tuple[int, int]) -> Image.Image:
    """The part of an image that a classifier saw, as sharp as the image is, at most :data:`DISPLAY` pixels high."""
    image = upright(source)
    times = max(min(DISPLAY, *image.size) // min(seen_hw), 1)
    side = info.img_size * times
    sharp = eval_transform(side, info.crop_pct, info.resize, (0.0,) * 3, (1.0,) * 3)(image)
    return to_picture(sharp)


def to_picture(image: Tensor) -> Image.Image:
    """(3, H, W) from 0 to 1 -> RGB."""
    return images_v2.to_pil_image(images_v2.to_dtype(image.clamp(0, 1), torch.uint8, scale=True))


def _channels(values: Sequence[float]) -> Tensor:
    return torch.tensor(values)[:, None, None]


def _classes(logits: Any, info: ModelInfo, top: int) -> tuple[list[Found], str]:
    if not info.classes or not isinstance(logits, Tensor):  # a detector's backbone has none
        return [], ""
    chances = logits.float().softmax(-1)[0].cpu()
    best = chances.topk(min(top, len(info.classes)))
    found = [
        Found(info.classes[i], value, f"{100 * value:.1f} %")
        for value, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
    return found, f"{found[0].name} {100 * found[0].value:.0f} %"


def _objects(
    seen: Tensor, result: dict[str, Tensor], info: ModelInfo, threshold: float
) -> tuple[Tensor, list[Found], str]:
    from deformvit import drawing  # Matplotlib is not needed to classify

    drawn = drawing.detections(seen, result, info.classes, threshold=threshold, names=False)
    kept = result["scores"] >= threshold
    found = []
    for i, name in enumerate(info.classes):
        mine = result["scores"][kept & (result["labels"] == i)]
        if len(mine):
            found.append(Found(name, float(mine.max()), f"{len(mine)}, up to {float(mine.max()):.2f}"))
    found.sort(key=lambda entry: -entry.value)
    return _tensor(drawn), found, f"{int(kept.sum())} objects"


def _labels(seen: Tensor, result: Tensor, info: ModelInfo) -> tuple[Tensor, list[Found], str]:
    from deformvit import drawing

    drawn = drawing.labels(seen, result, info.classes).crop((0, 0, seen.shape[2], seen.shape[1]))
    shares = torch.bincount(result.flatten(), minlength=len(info.classes)) / max(result.numel(), 1)
    found = [
        Found(info.classes[i], float(shares[i]), f"{100 * float(shares[i]):.1f} %")
        for i in shares.argsort(descending=True).tolist()
        if shares[i] > 0
    ]
    return _tensor(drawn), found, ""


def _tensor(picture: Image.Image) -> Tensor:
    return images_v2.to_dtype(images_v2.pil_to_tensor(picture), scale=True)
