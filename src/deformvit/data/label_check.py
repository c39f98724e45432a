"""What the annotations of a segmentation data set hold, looked at before anything is trained on them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deformvit.data.images import read_annotation, spread
from deformvit.data.segmentation import NO_CLASS, VALUES, SegmentationImages
from deformvit.errors import DataError

LOOKED_AT = 200
"""So many annotations of a split are read before training, evenly spread."""


@dataclass
class LabelCounts:
    """Labels of the annotations that :meth:`add` was given."""

    images: SegmentationImages
    read: int = 0
    """Annotations that were added."""
    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(VALUES, np.int64))
    """Pixels of every value in the files."""
    without_class: list[Path] = field(default_factory=list)
    """Annotations none of whose pixels has a class."""
    not_a_class: dict[Path, int] = field(default_factory=dict)
    """The smallest label that is not a class in each annotation that has one."""

    def add(self, path: Path, values: NDArray[np.generic]) -> None:
        """Count the labels of an annotation, (H, W) as :func:`deformvit.data.images.read_annotation` returns them."""
        counts = np.bincount(values.ravel(), minlength=VALUES)
        classes = self.images.table[: len(counts)]
        self.read += 1
        self.pixels += counts
        wrong = np.flatnonzero((counts > 0) & (classes == NO_CLASS))
        if len(wrong):
            self.not_a_class[path] = int(wrong[0])
        elif not counts[classes != self.images.ignore_label].any():
            self.without_class.append(path)

    @property
    def by_class(self) -> list[int]:
        """Pixels of each class."""
        return [int(self.pixels[self.images.table == label].sum()) for label in range(len(self.images.classes))]

    @property
    def wrong(self) -> str:
        """The annotations with labels that are not classes, in one line; empty where there are none."""
        if not self.not_a_class:
            return ""
        path, label = next(iter(self.not_a_class.items()))
        count = len(self.not_a_class)
        binary = " If 255 is the second of two classes, write it as 1." if self._values() == [0, 255] else ""
        return (
            f"{path}: label {label}, expected {self.images.expected} ({len(self.images.classes)} classes); "
            f"{count} of the {self.read} annotations looked at {'holds' if count == 1 else 'hold'} such labels.{binary}"
        )

    @property
    def problems(self) -> list[str]:
        """What is probably not meant, a line for each with its count."""
        images, lines = self.images, []
        looked = f"the {self.read} annotations looked at"
        by_class = self.by_class
        if self._values() == [0, 255] and images.ignore_label == 255:
            return [
                f"all labels are 0 or 255 in {looked} (such as {images.files[0][1].name}), and 255 means no class: "
                f"only {images.classes[0] if by_class[0] else 'no class'} is learnt; write the second class as 1"
            ]
        last = len(images.classes)
        if images.table[0] == images.ignore_label and self.pixels[0] and not self.pixels[last]:
            lines.append(
                f"label 0 means no class (data.reduce_zero_label) and label {last} occurs in none of {looked}; if 0 is "
                f"the class {images.classes[0]}, give --data.no-reduce-zero-label"
            )
        unused = [name for name, count in zip(images.classes, by_class, strict=True) if not count]
        if unused and self.read == len(images):
            some = ", ".join(unused[:5]) + (", ..." if len(unused) > 5 else "")
            lines.append(f"{len(unused)} of {len(images.classes)} classes occur in none of {looked}: {some}")
        if self.without_class:
            count = len(self.without_class)
            lines.append(
                f"{count} of {looked} {'has' if count == 1 else 'have'} no class, such as {self.without_class[0]}"
            )
        return lines

    def _values(self) -> list[int]:
        return np.flatnonzero(self.pixels).tolist()


def check_labels(images: SegmentationImages, most: int = LOOKED_AT) -> list[str]:
    """Look at some annotations of a data set; returns what is probably not meant, a line for each.

    Args:
        images: the data set.
        most: so many annotations are read, evenly spread.

    Raises:
        DataError: an annotation that cannot be read, or labels that are not classes, with their count.
    """
    counts = LabelCounts(images)
    for index in spread(len(images), most):
        path = images.files[index][1]
        counts.add(path, read_annotation(path))
    if counts.wrong:
        raise DataError(counts.wrong)
    return counts.problems
