"""What models predict for an image: results with named fields that can be drawn and written as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as images_v2

from deformvit import drawing
from deformvit.data.images import decode
from deformvit.models.descriptions import Task


@dataclass(frozen=True)
class Finding:
    """One line of what a result says: a class with its probability, its objects, or its share of the image."""

    name: str
    """Name of the class."""
    value: float
    """Probability of the class, highest score of its objects, or its share of the pixels: from 0 to 1."""
    text: str
    """The value as a person reads it, such as ``91.5 %``."""


@dataclass(frozen=True)
class Result:
    """What a model predicts for one image; tensors are on the CPU."""

    source: Path | Image.Image = field(repr=False)
    """The image's file, which is opened again when the image is asked for, or the image."""
    hw: tuple[int, int]
    """(H, W) of the image in pixels."""
    classes: list[str] = field(repr=False)
    """Names of all classes that the model knows, in the order of the labels."""
    index: int
    """Position of the image among those given."""

    task: ClassVar[Task]
    """What was predicted."""

    @property
    def image(self) -> Image.Image:
        """The image that the prediction is about, RGB, upright."""
        if isinstance(self.source, Image.Image):
            return self.source
        return decode(self.source, str(self.source), upright=True)

    def findings(self) -> list[Finding]:
        """What was found, by class, the strongest first."""
        raise NotImplementedError

    def headline(self) -> str:
        """The most important in a few words; empty where there is nothing to single out."""
        raise NotImplementedError

    def draw(self) -> Image.Image:
        """The image with the prediction on it."""
        raise NotImplementedError

    def overlay(self) -> Image.Image:
        """As :meth:`draw`, of the size of the image and without words."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The prediction as values that ``json.dumps`` takes."""
        raise NotImplementedError


@dataclass(frozen=True)
class ClassificationResult(Result):
    """The most probable classes of an image."""

    labels: Tensor
    """(k,) class numbers, the most probable first."""
    scores: Tensor
    """(k,) their probabilities."""

    task: ClassVar[Task] = "classification"

    @property
    def names(self) -> list[str]:
        """Names of the labels."""
        return [self.classes[i] for i in self.labels.tolist()]

    def findings(self) -> list[Finding]:
        scores = self.scores.tolist()
        return [Finding(name, score, f"{100 * score:.1f} %") for name, score in zip(self.names, scores, strict=True)]

    def headline(self) -> str:
        return f"{self.names[0]} {100 * float(self.scores[0]):.0f} %" if len(self.labels) else ""

    def draw(self) -> Image.Image:
        return drawing.classes(self.image, list(zip(self.names, self.scores.tolist(), strict=True)))

    def overlay(self) -> Image.Image:
        return self.image

    def to_dict(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "predictions": [
                {"label": label, "name": name, "score": score}
                for label, name, score in zip(self.labels.tolist(), self.names, self.scores.tolist(), strict=True)
            ],
        }


@dataclass(frozen=True)
class DetectionResult(Result):
    """The objects in an image, the surest first."""

    boxes: Tensor
    """(N, 4) x1, y1, x2, y2 in pixels of the image."""
    labels: Tensor
    """(N,) class numbers."""
    scores: Tensor
    """(N,) from 0 to 1."""
    masks: Tensor | None
    """(N, H, W) bool; None of a detector without masks."""

    task: ClassVar[Task] = "detection"

    @property
    def names(self) -> list[str]:
        """Names of the labels."""
        return [self.classes[i] for i in self.labels.tolist()]

    def above(self, threshold: float) -> DetectionResult:
        """The objects with at least this score."""
        kept = self.scores >= threshold
        masks = None if self.masks is None else self.masks[kept]
        return replace(self, boxes=self.boxes[kept], labels=self.labels[kept], scores=self.scores[kept], masks=masks)

    def findings(self) -> list[Finding]:
        lines = []
        for label, name in enumerate(self.classes):
            scores = self.scores[self.labels == label]
            if len(scores):
                best = float(scores.max())
                lines.append(Finding(name, best, f"{len(scores)}, up to {best:.2f}"))
        return sorted(lines, key=lambda line: -line.value)

    def headline(self) -> str:
        return f"{len(self.labels)} {'object' if len(self.labels) == 1 else 'objects'}"

    def prediction(self) -> dict[str, Tensor]:
        """The tensors by name, as :mod:`deformvit.metrics.detection` takes them."""
        tensors = {"boxes": self.boxes, "labels": self.labels, "scores": self.scores}
        return tensors if self.masks is None else tensors | {"masks": self.masks}

    def to_torchvision(self) -> dict[str, Tensor]:
        """The tensors in torchvision's convention: ``labels`` from 1, as 0 is the background, and ``masks`` float32
        (N, 1, H, W) of 0 and 1. Boxes and scores are the same in both."""
        tensors = self.prediction() | {"labels": self.labels + 1}
        return tensors if self.masks is None else tensors | {"masks": self.masks[:, None].float()}

    def _draw(self, names: bool) -> Image.Image:
        return drawing.detections(_tensor(self.image), self.prediction(), self.classes, threshold=0.0, names=names)

    def draw(self) -> Image.Image:
        return self._draw(names=True)

    def overlay(self) -> Image.Image:
        return self._draw(names=False)

    def to_dict(self) -> dict[str, Any]:
        return {
            "task": self.task, "height": self.hw[0], "width": self.hw[1],
            "objects": [
                {"box": box, "label": label, "name": name, "score": score}
                for box, label, name, score in zip(
                    self.boxes.tolist(), self.labels.tolist(), self.names, self.scores.tolist(), strict=True
                )
            ],
        }  # fmt: skip


@dataclass(frozen=True)
class SegmentationResult(Result):
    """The class of every pixel of an image."""

    label_map: Tensor
    """(H, W) class numbers."""

    task: ClassVar[Task] = "segmentation"

    def findings(self) -> list[Finding]:
        shares = torch.bincount(self.label_map.flatten().long(), minlength=len(self.classes))
        shares = shares / max(self.label_map.numel(), 1)
        return [
            Finding(self.classes[i], float(shares[i]), f"{100 * float(shares[i]):.1f} %")
            for i in shares.argsort(descending=True).tolist()
            if shares[i] > 0
        ]

    def headline(self) -> str:
        return ""

    def draw(self) -> Image.Image:
        return drawing.labels(_tensor(self.image), self.label_map, self.classes)

    def overlay(self) -> Image.Image:
        return drawing.labels(_tensor(self.image), self.label_map, self.classes, names=False)

    def to_dict(self) -> dict[str, Any]:
        return {
            "task": self.task, "height": self.hw[0], "width": self.hw[1],
            "shares": {found.name: found.value for found in self.findings()}, "label_map": self.label_map.tolist(),
        }  # fmt: skip


def _tensor(image: Image.Image) -> Tensor:
    """RGB -> (3, H, W) from 0 to 1."""
    return images_v2.to_dtype(images_v2.pil_to_tensor(image), scale=True)
