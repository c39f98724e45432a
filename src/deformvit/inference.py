"""Predict with any model of this package: ``deformvit.load`` gives a predictor, a predictor gives results.

A photo's way: :func:`deformvit.load` (header, then weights, once) -> ``Predictor.transform`` (as the file says) ->
network -> a result with named fields. The commands, the figures and the page take the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as images_v2

from deformvit.data import eval_transform
from deformvit.data.images import decode
from deformvit.devices import pick_device
from deformvit.errors import UserError
from deformvit.models import files
from deformvit.models.descriptions import (
    ClassifierDescription,
    Description,
    DetectorDescription,
    SegmenterDescription,
    Task,
)
from deformvit.models.files import PYTORCH_SUFFIXES
from deformvit.models.released.files import load_checkpoint, yaml_beside
from deformvit.results import ClassificationResult, DetectionResult, Result, SegmentationResult
from deformvit.systems import Detector, Segmenter

ImageSource = str | Path | bytes | Image.Image | np.ndarray | Tensor
"""An image: its file's path or bytes, a PIL image, uint8 (H, W, 3), or float (3, H, W) RGB from 0 to 1."""

PICTURE = 1024
"""Pixels of the shorter side that a picture of an image to look at has, where the image has as many."""


@dataclass(frozen=True)
class _Options:
    top: int
    threshold: float

    def __post_init__(self) -> None:
        if self.top < 1:
            raise UserError(f"top must be at least 1, got {self.top}")
        if not 0 <= self.threshold <= 1:
            raise UserError(f"threshold must be from 0 to 1, got {self.threshold}")


@dataclass(frozen=True)
class _Given:
    """An image of a batch."""

    index: int
    image: Image.Image
    source: Path | Image.Image
    """What a result keeps: files are opened again when they are drawn, as many images would fill the memory."""

    @property
    def fields(self) -> dict[str, Any]:
        """What every result says of its image."""
        return {"index": self.index, "source": self.source, "hw": (self.image.height, self.image.width)}


R = TypeVar("R", bound=Result)


class Predictor(Generic[R]):
    """A model that is ready to predict; made by :func:`deformvit.load`."""

    task: ClassVar[Task]
    """What it predicts."""
    model: nn.Module
    """The network, in evaluation mode, on ``device``."""
    description: Description
    """What its file says of it."""
    classes: list[str]
    """Names of the classes, in the order of the labels."""
    transform: Callable[[Image.Image], Tensor]
    """An RGB image -> the tensor that the model is given, without the batch axis."""
    device: torch.device
    """Where it computes."""
    name: str
    """What it was loaded from."""

    def __init__(self, model: nn.Module, description: Description, name: str, device: torch.device) -> None:
        self.model, self.description, self.name, self.device = model, description, name, device
        self.classes = description.classes
        self.transform = self._make_transform()

    def _make_transform(self) -> Callable[[Image.Image], Tensor]:
        return _tensor

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self.classes)} classes, {self.device})"

    def __call__(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        top: int = 5,
        threshold: float = 0.5,
        batch_size: int = 32,
    ) -> Any:
        """Predict one image or several.

        Args:
            images: one image, or an iterable of images of any sizes: paths, PIL images, uint8 arrays (H, W, 3), or
                float tensors (3, H, W), RGB from 0 to 1. Photos are turned upright as their EXIF data say.
            top: classifiers: how many classes a result has.
            threshold: detectors: objects with a lower score are left out.
            batch_size: classifiers: images computed together.

        Returns:
            The result of one image, or a list with one for each of several.

        Raises:
            UserError: something that is not an image, or options out of range; the message names it.
        """
        if isinstance(images, str | Path | bytes | Image.Image) or (
            isinstance(images, np.ndarray | Tensor) and images.ndim <= 3
        ):
            return next(self.stream([images], top=top, threshold=threshold, batch_size=batch_size))
        return list(self.stream(images, top=top, threshold=threshold, batch_size=batch_size))

    def stream(
        self,
        images: Iterable[ImageSource],
        *,
        top: int = 5,
        threshold: float = 0.5,
        batch_size: int = 32,
        on_error: Callable[[UserError], None] | None = None,
    ) -> Iterator[R]:
        """Results one after another, in the order of the images; only a batch of images is in memory.

        Args:
            images, top, threshold, batch_size: as in :meth:`__call__`.
            on_error: called for an image that cannot be read, which is then skipped; by default the error is raised.

        Raises:
            UserError: something that is not an image, or options out of range.
        """
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}")
        options = _Options(top, threshold)
        batch: list[_Given] = []
        for index, source in enumerate(images):
            try:
                image = to_image(source, f"image {index + 1}")
                batch.append(_Given(index, image, Path(source) if isinstance(source, str | Path) else image))
            except UserError as error:
                if on_error is None:
                    raise
                on_error(error)
            if len(batch) == (batch_size if self.task == "classification" else 1):
                yield from self._predict(batch, options)
                batch = []
        if batch:
            yield from self._predict(batch, options)

    def _predict(self, batch: list[_Given], options: _Options) -> Iterator[R]:
        with torch.inference_mode():
            inputs = [self.transform(given.image) for given in batch]
            yield from self._results(inputs, batch, options)

    def _results(self, inputs: list[Tensor], batch: list[_Given], options: _Options) -> Iterator[R]:
        raise NotImplementedError

    def view(self, image: Image.Image, size: Sequence[int] | None = None) -> Tensor:
        """What the network sees of an image, before normalisation: (3, h, w) RGB from 0 to 1.

        Args:
            image: RGB.
            size: classifiers: (H, W) that the whole image is resized to; by default as in evaluation.
        """
        raise NotImplementedError

    def picture(self, image: Image.Image, size: Sequence[int] | None = None) -> Image.Image:  # noqa: ARG002
        """The part of an image that :meth:`view` takes, as sharp as the image is, for a person to look at."""
        return shrunk(image)

    def predict_view(
        self, image: Image.Image, size: Sequence[int] | None = None, *, top: int = 5, threshold: float = 0.5
    ) -> R | None:
        """The result of what :meth:`view` returns of an image; None of a model without classes."""
        self.view(image, size)  # refuses a size that cannot be given
        with torch.inference_mode():
            return next(self._results([self.transform(image)], [_Given(0, image, image)], _Options(top, threshold)))


class ClassificationPredictor(Predictor[ClassificationResult]):
    """Of a classifier, or of a backbone, which predicts nothing but has features to look at."""

    task = "classification"
    description: ClassifierDescription

    def _make_transform(self) -> Callable[[Image.Image], Tensor]:
        described = self.description
        self._view = eval_transform(described.img_size, described.crop_pct, described.resize)
        return eval_transform(described.img_size, described.crop_pct, described.resize, described.mean, described.std)

    def view(self, image: Image.Image, size: Sequence[int] | None = None) -> Tensor:
        if size is None:
            return self._view(image)
        if len(size) != 2 or not 1 <= min(size) <= max(size) <= 8192:
            raise UserError(f"size must be a height and a width from 1 to 8192, got {tuple(size)}")
        bicubic = images_v2.InterpolationMode.BICUBIC
        return images_v2.resize(_tensor(image), list(size), bicubic, antialias=True).clamp(0, 1)

    def picture(self, image: Image.Image, size: Sequence[int] | None = None) -> Image.Image:
        if size is not None:
            return shrunk(image)
        described = self.description
        side = max(round(min(*image.size, PICTURE) * described.crop_pct), described.img_size)
        return to_image(eval_transform(side, described.crop_pct, described.resize)(image))

    def predict_view(
        self, image: Image.Image, size: Sequence[int] | None = None, *, top: int = 5, threshold: float = 0.5
    ) -> ClassificationResult | None:
        view = self.view(image, size)
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.description.mean, self.description.std))
        pixels = (view - mean) / std
        with torch.inference_mode():
            if not self.classes:
                self.model(pixels[None].to(self.device, next(self.model.parameters()).dtype))
                return None
            return next(self._results([pixels], [_Given(0, image, image)], _Options(top, threshold)))

    def _results(self, inputs: list[Tensor], batch: list[_Given], options: _Options) -> Iterator[ClassificationResult]:
        if not self.classes:
            raise UserError(f"{self.name} is a backbone without a classifier: it predicts no classes")
        dtype = next(self.model.parameters()).dtype
        logits = self.model(torch.stack(inputs).to(self.device, dtype))
        best = logits.float().softmax(-1).cpu().topk(min(options.top, len(self.classes)))
        for given, scores, labels in zip(batch, best.values, best.indices, strict=True):
            yield ClassificationResult(**given.fields, classes=self.classes, labels=labels, scores=scores)


class _ResizedInside:
    """Detectors and segmentation networks resize images themselves; ``input_size`` says to what."""

    model: Detector | Segmenter

    def view(self, image: Image.Image, size: Sequence[int] | None = None) -> Tensor:
        if size is not None:
            raise UserError(f"size is for classifiers and backbones; {type(self.model).__name__} resizes images itself")
        return images_v2.resize(_tensor(image), list(self.model.input_size(image.height, image.width)), antialias=True)


class DetectionPredictor(_ResizedInside, Predictor[DetectionResult]):
    """Of a detector."""

    task = "detection"
    model: Detector
    description: DetectorDescription

    def _results(self, inputs: list[Tensor], batch: list[_Given], options: _Options) -> Iterator[DetectionResult]:
        dtype = next(self.model.parameters()).dtype
        found = self.model([image.to(self.device, dtype) for image in inputs])
        for given, values in zip(batch, found, strict=True):
            kept = values["scores"] >= options.threshold
            values = {name: value[kept].cpu() for name, value in values.items()}
            yield DetectionResult(
                **given.fields, classes=self.classes, boxes=values["boxes"], labels=values["labels"],
                scores=values["scores"].float(), masks=values.get("masks"),
            )  # fmt: skip


class SegmentationPredictor(_ResizedInside, Predictor[SegmentationResult]):
    """Of a segmentation network."""

    task = "segmentation"
    model: Segmenter
    description: SegmenterDescription

    def _results(self, inputs: list[Tensor], batch: list[_Given], _options: _Options) -> Iterator[SegmentationResult]:
        dtype = next(self.model.parameters()).dtype
        for given, pixels in zip(batch, inputs, strict=True):
            label_map = self.model.predict(pixels.to(self.device, dtype)).cpu()
            yield SegmentationResult(**given.fields, classes=self.classes, label_map=label_map)


_PREDICTORS: dict[type, type[Predictor[Any]]] = {
    ClassifierDescription: ClassificationPredictor,
    DetectorDescription: DetectionPredictor,
    SegmenterDescription: SegmentationPredictor,
}


def load(
    name_or_path: str | Path, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> Predictor[Any]:
    """A predictor for any model of this package: classifier, detector or segmentation network.

    Args:
        name_or_path: the name of packaged weights such as ``"dat_nano.cifar10"``, a model file, the folder of a run or
            of a Hugging Face hub repository, or a released ``.pth`` with its YAML beside it (the same name, ending in
            ``.yaml``).
        device: where to compute, such as "cpu" or "cuda:1"; by default the GPU if there is one.
        dtype: of weights and computation, such as ``torch.bfloat16``; float32 by default.

    Raises:
        UserError: nothing there, damaged, or a device that this machine does not have; the message says which.
    """
    place = pick_device(str(device) if device is not None else "auto")
    path = files.resolve(name_or_path)
    model, description = _load_released(path) if path.suffix in PYTORCH_SUFFIXES else files.load_model(path)
    return predictor(model, description, name=str(name_or_path), device=place, dtype=dtype)


def _load_released(path: Path) -> tuple[nn.Module, ClassifierDescription]:
    """A released checkpoint, whose YAML file says what it is."""
    config = yaml_beside(path)
    if config is None:
        raise UserError(
            f"{path}: a PyTorch checkpoint does not say which model it is of; put its released YAML beside it as "
            f"{path.with_suffix('.yaml').name}, or make a model file of it: deformvit convert {path.name} "
            f"{path.with_suffix('.safetensors').name} --model NAME"
        )
    model, description = load_checkpoint(path, config=config)
    return model.float(), description


def predictor(
    model: nn.Module,
    description: Description,
    *,
    name: str = "",
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Predictor[Any]:
    """A predictor for a model that is at hand with its description."""
    place = device if device is not None else next(model.parameters()).device
    model = model.to(device=place, dtype=dtype).eval()
    return _PREDICTORS[type(description)](model, description, name or description.name, place)


def to_image(source: Any, name: str = "image") -> Image.Image:
    """One image as RGB, photos upright.

    Args:
        source: a path or the bytes of a file, a PIL image, uint8 (H, W, 3), or a float tensor (3, H, W) from 0 to 1.
        name: what messages call it, if it has no path.

    Raises:
        UserError: anything else, or a file that is not a readable image.
    """
    if isinstance(source, str | Path):
        return decode(Path(source), str(source), upright=True)
    if isinstance(source, bytes):
        return decode(source, name, upright=True)
    if isinstance(source, Image.Image):
        return ImageOps.exif_transpose(source).convert("RGB")
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or not source.size:
            raise UserError(f"{name}: expected uint8 (H, W, 3), got {source.dtype} {source.shape}")
        return Image.fromarray(np.ascontiguousarray(source))
    if isinstance(source, Tensor):
        if source.ndim != 3 or source.shape[0] != 3 or not source.numel():
            raise UserError(f"{name}: expected a tensor (3, H, W), got {tuple(source.shape)}")
        if not source.is_floating_point():
            if source.dtype != torch.uint8:
                raise UserError(f"{name}: expected a tensor of floats from 0 to 1 or of uint8, got {source.dtype}")
            return images_v2.to_pil_image(source.cpu())
        low, high = (float(value) for value in source.aminmax())
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise UserError(
                f"{name}: expected RGB from 0 to 1, not normalised; got values from {low:.3g} to {high:.3g}"
            )
        eight_bits = (255 * source.detach().float().clamp(0, 1)).round().to(torch.uint8)
        return images_v2.to_pil_image(eight_bits.cpu())
    raise UserError(f"{name}: expected a path, a PIL image, a uint8 array or a tensor, got {type(source).__name__}")


def shrunk(image: Image.Image, side: int = PICTURE) -> Image.Image:
    """The image, or a smaller copy whose shorter side has that many pixels and whose longer side at most twice."""
    factor = min(side / min(image.size), 2 * side / max(image.size))
    if factor >= 1:
        return image
    width, height = (max(round(factor * length), 1) for length in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def _tensor(image: Image.Image) -> Tensor:
    """RGB -> (3, H, W) from 0 to 1."""
    return images_v2.to_dtype(images_v2.pil_to_tensor(image), scale=True)
