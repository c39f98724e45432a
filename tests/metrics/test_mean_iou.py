"""Segmentation metrics against values counted by hand."""

from __future__ import annotations

import math

import pytest
import torch

from deformvit.metrics.segmentation import SegmentationMetrics

TRUE = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 2, 255, 255]])
PREDICTED = torch.tensor([[0, 0, 1, 1, 1], [1, 0, 1, 3, 0]])
"""Class 0: 2 of 3 found, one pixel too many; class 1: 3 of 4 found, two too many; class 2: missed; class 3: nowhere."""
MATRIX = [[2, 1, 0, 0], [1, 3, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


def counted(*pairs, classes=4):
    metrics = SegmentationMetrics(classes)
    for prediction, labels in pairs:
        metrics.update(prediction, labels)
    return metrics


def test_known_values():
    metrics = counted((PREDICTED, TRUE))
    assert metrics.matrix.dtype == torch.int64
    assert metrics.matrix.tolist() == MATRIX
    result = metrics.compute(["a", "b", "c", "d"])
    assert list(result) == ["mIoU", "mAcc", "aAcc", "IoU/a", "IoU/b", "IoU/c", "IoU/d"]
    assert math.isnan(result.pop("IoU/d"))
    assert result == pytest.approx(
        {
            "IoU/a": 100 * 2 / 4, "IoU/b": 100 * 3 / 6, "IoU/c": 0,
            "mIoU": 100 * (1 / 2 + 1 / 2 + 0) / 3,  # without class 3
            "mAcc": 100 * (2 / 3 + 3 / 4 + 0) / 3,
            "aAcc": 100 * 5 / 8,
        }
    )  # fmt: skip
    assert metrics.compute() == {name: result[name] for name in ("mIoU", "mAcc", "aAcc")}


def test_classes_that_are_only_predicted_count_for_the_union_alone():
    result = counted((torch.tensor([[0, 0, 0, 2]]), torch.tensor([[0, 0, 0, 0]]))).compute()
    assert result == {"mIoU": pytest.approx((75 + 0) / 2), "mAcc": 75, "aAcc": 75}


def test_images_add_up():
    """The metrics are of all pixels together, not means over images."""
    left, right = (PREDICTED[:, :2], TRUE[:, :2]), (PREDICTED[:, 2:], TRUE[:, 2:])
    assert counted(left, right).matrix.tolist() == MATRIX
    both = counted((PREDICTED, TRUE), (TRUE.clamp(max=3), TRUE))
    assert both.matrix.tolist() == [[5, 1, 0, 0], [1, 7, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert both.compute()["aAcc"] == pytest.approx(100 * 13 / 16)


def test_batches_and_integer_types():
    for dtype in (torch.uint8, torch.int16, torch.int32):
        batch = counted((PREDICTED.to(dtype).expand(3, 2, 5), TRUE.to(torch.uint8).expand(3, 2, 5)))
        assert batch.matrix.tolist() == [[3 * n for n in row] for row in MATRIX]


def test_many_classes():
    """(149 + 1) x 150 pairs do not fit into the labels' own type."""
    labels = torch.arange(150, dtype=torch.uint8).view(10, 15)
    metrics = counted((labels, labels), classes=150)
    assert torch.equal(metrics.matrix, torch.eye(150, dtype=torch.int64))
    assert metrics.compute() == {"mIoU": 100, "mAcc": 100, "aAcc": 100}


def test_ignored_pixels_do_not_count_whatever_is_predicted():
    labels, ignored = torch.tensor([[0, 7], [1, 7]]), torch.tensor([[0, 255], [1, -3]])
    metrics = SegmentationMetrics(2, ignore_label=7)
    metrics.update(ignored, labels)
    assert metrics.matrix.tolist() == [[1, 0], [0, 1]]


def test_nothing_seen():
    for metrics in (SegmentationMetrics(3), counted((torch.zeros(2, 3).long(), torch.full((2, 3), 255)), classes=3)):
        result = metrics.compute(["a", "b", "c"])
        assert len(result) == 6
        assert all(math.isnan(value) for value in result.values())


def test_merge():
    parts = [counted((PREDICTED[:, i : i + 1], TRUE[:, i : i + 1])).matrix for i in range(5)]
    metrics = SegmentationMetrics(4)
    metrics.merge(parts)
    assert metrics.matrix.tolist() == MATRIX
    assert metrics.matrix.dtype == torch.int64
    assert sum(part.sum() for part in parts) == 8  # what is merged stays as it was
    with pytest.raises(ValueError, match=r"expected a matrix \(4, 4\), got \(3, 3\)"):
        metrics.merge([torch.zeros(3, 3).long()])


@pytest.mark.parametrize(
    ("prediction", "labels", "message"),
    [
        (PREDICTED, TRUE[:, :4], r"prediction is \(2, 5\), but labels are \(2, 4\)"),
        (PREDICTED[None], TRUE, r"prediction is \(1, 2, 5\), but labels are \(2, 5\)"),
        (PREDICTED.float(), TRUE, "prediction must be class numbers of an integer type, got torch.float32"),
        (PREDICTED, TRUE > 0, "labels must be class numbers of an integer type, got torch.bool"),
        (PREDICTED + 3, TRUE, "prediction has class 4, expected 0 to 3"),
        (PREDICTED - 1, TRUE, "prediction has class -1, expected 0 to 3"),
        (PREDICTED, TRUE.clamp(max=77), r"labels has class 77, expected 0 to 3 \(ignore_label is 255\)"),
        (PREDICTED, TRUE - 1, "labels has class -1"),
    ],
)
def test_wrong_tensors_are_refused_and_not_counted(prediction, labels, message):
    metrics = SegmentationMetrics(4)
    with pytest.raises(ValueError, match=message):
        metrics.update(prediction, labels)
    assert metrics.matrix.sum() == 0


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="num_classes must be positive, got 0"):
        SegmentationMetrics(0)
    for names in (["a", "b"], ["a", "b", "b"]):
        with pytest.raises(ValueError, match="expected 3 different names"):
            SegmentationMetrics(3).compute(names)


@pytest.mark.gpu
def test_on_a_gpu():
    metrics = counted((PREDICTED.cuda(), TRUE), (PREDICTED.cuda(), TRUE.cuda()))
    assert metrics.matrix.device.type == "cuda"
    assert metrics.compute() == counted((PREDICTED, TRUE)).compute()
    merged = SegmentationMetrics(4)
    merged.merge([metrics.matrix])
    assert torch.equal(merged.matrix * 1, metrics.matrix.cpu())
