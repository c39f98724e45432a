"""Accuracy of classifiers, and which classes they take for one another."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deformvit.errors import DataError

CONFUSION = "confusion.json"
"""Name of the file that :meth:`Confusion.write` writes beside a model."""

MOST_IN_FULL = 1000
"""Classes up to which the file has the whole matrix, of which almost all is zero; of more it has the other entries."""


class Mistake(NamedTuple):
    """Images of one class that were taken for another."""

    true: str
    predicted: str
    images: int


class ClassAccuracy(NamedTuple):
    """What became of the images of one class."""

    name: str
    images: int
    correct: int
    mistakes: list[Mistake]
    """What the others were taken for, the most frequent first."""

    @property
    def percent(self) -> float:
        """Share of the images that were recognised (recall); nan without images."""
        return 100 * self.correct / self.images if self.images else math.nan


@dataclass(frozen=True)
class Confusion:
    """The confusion matrix of an evaluation: how many images of each class were predicted as which class."""

    classes: list[str]
    """Names of the classes, in the order of the labels."""
    entries: Tensor
    """int64 (n, 3): true class, predicted class, images; those that are not zero, in order."""

    @property
    def images(self) -> int:
        """How many images there were."""
        return int(self.entries[:, 2].sum())

    def matrix(self) -> Tensor:
        """int64 (classes, classes): rows are true classes, columns are predicted ones."""
        matrix = torch.zeros(len(self.classes), len(self.classes), dtype=torch.int64)
        matrix[self.entries[:, 0], self.entries[:, 1]] = self.entries[:, 2]
        return matrix

    def by_class(self) -> list[ClassAccuracy]:
        """For every class, in the order of the labels."""
        correct = [0] * len(self.classes)
        mistakes: list[list[Mistake]] = [[] for _ in self.classes]
        for true, predicted, images in self.entries.tolist():
            if true == predicted:
                correct[true] = images
            else:
                mistakes[true].append(Mistake(self.classes[true], self.classes[predicted], images))
        return [
            ClassAccuracy(name, right + sum(mistake.images for mistake in wrong), right, _most_first(wrong))
            for name, right, wrong in zip(self.classes, correct, mistakes, strict=True)
        ]

    def mean_accuracy(self) -> float:
        """Mean in percent of the accuracies of the classes that have images: each counts as much, however small."""
        known = [entry.percent for entry in self.by_class() if entry.images]
        return sum(known) / len(known) if known else math.nan

    def write(self, path: Path, metrics: Mapping[str, float]) -> None:
        """A JSON file, which :meth:`read` reads.

        It has ``classes``; ``images``; ``metrics``; ``by_class`` with name, images, correct and accuracy in percent
        (null without images); ``mistakes``, the most frequent first, a hundred at most; and ``matrix``, whose rows are
        true and whose columns are predicted classes, or ``entries`` for more classes than :data:`MOST_IN_FULL`.
        """
        by_class = self.by_class()
        mistakes = _most_first([mistake for entry in by_class for mistake in entry.mistakes])
        content: dict[str, Any] = {
            "classes": self.classes,
            "images": self.images,
            "metrics": {name: _finite(value) for name, value in metrics.items()},
            "by_class": [
                {
                    "name": entry.name,
                    "images": entry.images,
                    "correct": entry.correct,
                    "accuracy": _finite(entry.percent),
                }
                for entry in by_class
            ],
            "mistakes": [mistake._asdict() for mistake in mistakes[:100]],
        }
        if len(self.classes) <= MOST_IN_FULL:
            content["matrix"] = self.matrix().tolist()
        else:
            content["entries"] = self.entries.tolist()
        path.write_text(_lines(content))

    @classmethod
    def read(cls, path: Path) -> Confusion:
        """Read what :meth:`write` wrote.

        Raises:
            DataError: no such file, or it is damaged.
        """
        try:
            content = json.loads(path.read_text())
            classes = [str(name) for name in content["classes"]]
            if "matrix" in content:
                matrix = torch.tensor(content["matrix"], dtype=torch.int64).reshape(len(classes), len(classes))
                places = matrix.nonzero()
                return cls(classes, torch.cat((places, matrix[places[:, 0], places[:, 1], None]), 1))
            entries = torch.tensor(content["entries"], dtype=torch.int64).reshape(-1, 3)
            if len(entries) and not 0 <= int(entries[:, :2].min()) <= int(entries[:, :2].max()) < len(classes):
                raise ValueError("a class without a name")
            return cls(classes, entries)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise DataError(f"{path}: not a confusion matrix that training or evaluation wrote ({error!r})") from error


class ClassificationMetrics:
    """Collects what a classifier predicts, on its device and without waiting for it.

    Kept are two numbers for each image rather than a matrix, so that 21,000 classes cost no more than ten.

    Args:
        classes: names of the classes, in the order of the labels.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = list(classes)
        self._pairs: list[Tensor] = []
        self._losses: list[Tensor] = []
        self._within_five: list[Tensor] = []

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            logits: (B, classes).
            labels: (B,) class numbers, on the same device.
        """
        best = logits.topk(min(5, logits.shape[1])).indices
        self._pairs.append(torch.stack((labels, best[:, 0]), 1))
        self._within_five.append((best == labels[:, None]).sum())
        self._losses.append(nn.functional.cross_entropy(logits.float(), labels, reduction="sum"))

    def state(self) -> tuple[Tensor, float, int]:
        """What :meth:`merge` takes: true and predicted classes (n, 2) on the CPU, the sum of losses, hits of top5."""
        if not self._pairs:
            return torch.zeros(0, 2, dtype=torch.int64), 0.0, 0
        losses = torch.stack(self._losses).cpu().double()
        return torch.cat(self._pairs).cpu(), float(losses.sum()), int(torch.stack(self._within_five).sum())

    def merge(self, states: Iterable[tuple[Tensor, float, int]]) -> None:
        """Add the :meth:`state` of other processes. To a new object, add those of all, this one's included."""
        for pairs, loss, within_five in states:
            self._pairs.append(pairs)
            self._losses.append(torch.tensor(loss, dtype=torch.float64))
            self._within_five.append(torch.tensor(within_five))

    def compute(self) -> dict[str, float]:
        """``top1`` and ``loss``, the mean cross-entropy; ``top5`` too where there are more than five classes.

        Accuracies are in percent; without any image all are nan.
        """
        pairs, loss, within_five = self.state()
        count = len(pairs)
        hits = {"top1": int((pairs[:, 0] == pairs[:, 1]).sum())}
        if len(self.classes) > 5:
            hits["top5"] = within_five
        result = {name: 100 * value / count if count else math.nan for name, value in hits.items()}
        return result | {"loss": loss / count if count else math.nan}

    def confusion(self) -> Confusion:
        """Which classes the images were taken for."""
        pairs, counts = self.state()[0].unique(dim=0, return_counts=True)
        return Confusion(self.classes, torch.cat((pairs, counts[:, None]), 1))


def _most_first(mistakes: list[Mistake]) -> list[Mistake]:
    return sorted(mistakes, key=lambda mistake: -mistake.images)


def _finite(value: float) -> float | None:
    """JSON has no nan."""
    return value if math.isfinite(value) else None


def _lines(content: Mapping[str, Any]) -> str:
    """JSON in which a row of the matrix, or what is said of a class, is a line."""
    parts = []
    for name, value in content.items():
        text = json.dumps(value)
        if isinstance(value, list) and value and not isinstance(value[0], str):
            text = "[\n    " + ",\n    ".join(json.dumps(entry) for entry in value) + "\n  ]"
        parts.append(f"  {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
