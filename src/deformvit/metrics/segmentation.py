"""Intersection over union and pixel accuracies of segmentation, from one confusion matrix."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class SegmentationMetrics:
    """Counts pixels by their true and predicted classes.

    Args:
        num_classes: number of classes.
        ignore_label: pixels with this label do not count, whatever is predicted there.

    Attributes:
        matrix: the confusion matrix in pixels, int64 (num_classes, num_classes): rows are true classes, columns are
            predicted ones. It is on the device of the latest predictions.
    """

    def __init__(self, num_classes: int, ignore_label: int = 255) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be positive, got {num_classes}")
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, prediction: Tensor, labels: Tensor) -> None:
        """Count the pixels of one or more images.

        Args:
            prediction: classes, (..., H, W), of any integer type.
            labels: true classes or ``ignore_label``, of the same shape.

        Raises:
            ValueError: shapes differ, a tensor is not of integers, or a class is not from 0 to ``num_classes`` - 1.
        """
        if prediction.shape != labels.shape:
            raise ValueError(f"prediction is {tuple(prediction.shape)}, but labels are {tuple(labels.shape)}")
        for name, values in (("prediction", prediction), ("labels", labels)):
            if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
                raise ValueError(f"{name} must be class numbers of an integer type, got {values.dtype}")
        labels = labels.to(prediction.device)
        counted = labels != self.ignore_label
        true, predicted = labels[counted].long(), prediction[counted].long()
        if not true.numel():
            return
        for name, values in (("prediction", predicted), ("labels", true)):
            least, largest = (int(value) for value in torch.aminmax(values))
            if least < 0 or largest >= self.num_classes:
                raise ValueError(
                    f"{name} has class {least if least < 0 else largest}, expected 0 to {self.num_classes - 1}"
                    f" (ignore_label is {self.ignore_label})"
                )
        counts = torch.bincount(true * self.num_classes + predicted, minlength=self.num_classes**2)
        self.matrix = self.matrix.to(counts.device) + counts.view_as(self.matrix)

    def merge(self, matrices: Iterable[Tensor]) -> None:
        """Add the ``matrix`` of other processes.

        To a new object, add those of all processes, this one's included.

        Raises:
            ValueError: a matrix is of another shape.
        """
        for matrix in matrices:
            if matrix.shape != self.matrix.shape:
                raise ValueError(f"expected a matrix {tuple(self.matrix.shape)}, got {tuple(matrix.shape)}")
            self.matrix = self.matrix + matrix.to(self.matrix)

    def compute(self, names: list[str] | None = None) -> dict[str, float]:
        """``mIoU``, ``mAcc`` and ``aAcc`` in percent, and ``IoU/<name>`` of every class if ``names`` are given.

        ``mIoU`` is the mean IoU of the classes that occur in labels or predictions; ``mAcc`` the mean recall of the
        classes that occur in labels; ``aAcc`` the share of all pixels that are right. A value without any pixel to
        count is nan.

        Raises:
            ValueError: ``names`` are not ``num_classes`` different names.
        """
        if names is not None and (len(names) != self.num_classes or len(set(names)) != len(names)):
            raise ValueError(f"expected {self.num_classes} different names, got {names}")
        matrix = self.matrix.cpu().double()
        correct, true, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
        # 0 / 0 is nan, which nanmean leaves out, so classes that do not occur do not count.
        iou = 100 * correct / (true + predicted - correct)
        result = {
            "mIoU": iou.nanmean(),
            "mAcc": (100 * correct / true).nanmean(),
            "aAcc": 100 * correct.sum() / true.sum(),
        }
        result |= {f"IoU/{name}": value for name, value in zip(names or [], iou, strict=False)}
        return {name: float(value) for name, value in result.items()}
