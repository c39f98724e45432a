"""Accuracy and confusion matrices of classifiers against images counted by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch

from deformvit.errors import DataError
from deformvit.metrics.classification import MOST_IN_FULL, ClassificationMetrics, Confusion, Mistake

NAMES = ["cat", "dog", "horse"]
TRUE = [0, 0, 0, 0, 1, 1, 1]
PREDICTED = [0, 0, 1, 2, 1, 0, 0]
"""Cats: 2 of 4, one taken for a dog and one for a horse; dogs: 1 of 3, two taken for cats; no horses."""
MATRIX = [[2, 1, 1], [2, 1, 0], [0, 0, 0]]


def logits(predicted, classes):
    return 4.0 * torch.nn.functional.one_hot(torch.tensor(predicted), classes)


def counted(*parts, names=NAMES):
    metrics = ClassificationMetrics(names)
    for predicted, true in parts:
        metrics.update(logits(predicted, len(names)), torch.tensor(true))
    return metrics


def test_known_values():
    metrics = counted((PREDICTED[:3], TRUE[:3]), (PREDICTED[3:], TRUE[3:]))  # batches of different sizes
    right, wrong = (-math.log(math.exp(part) / (math.exp(4) + 2)) for part in (4, 0))
    assert metrics.compute() == pytest.approx({"top1": 100 * 3 / 7, "loss": (3 * right + 4 * wrong) / 7})
    confusion = metrics.confusion()
    assert confusion.matrix().tolist() == MATRIX
    assert confusion.images == 7
    cats, dogs, horses = confusion.by_class()
    assert cats == ("cat", 4, 2, [Mistake("cat", "dog", 1), Mistake("cat", "horse", 1)])
    assert dogs == ("dog", 3, 1, [Mistake("dog", "cat", 2)])
    assert horses == ("horse", 0, 0, [])
    assert (cats.percent, dogs.percent) == (50, pytest.approx(100 / 3))
    assert math.isnan(horses.percent)
    assert confusion.mean_accuracy() == pytest.approx((50 + 100 / 3) / 2)  # of the classes that have images


def test_most_frequent_mistakes_come_first():
    confusion = counted(([1, 2, 2, 2, 1], [0, 0, 0, 0, 0])).confusion()
    assert confusion.by_class()[0].mistakes == [("cat", "horse", 3), ("cat", "dog", 2)]


@pytest.mark.parametrize(("classes", "counts"), [(2, False), (5, False), (6, True), (10, True)])
def test_top5_is_of_more_than_five_classes(classes, counts):
    metrics = ClassificationMetrics([str(i) for i in range(classes)])
    metrics.update(torch.arange(classes).repeat(classes, 1).float(), torch.arange(classes))  # the best is the last
    found = metrics.compute()
    assert list(found) == (["top1", "top5", "loss"] if counts else ["top1", "loss"])
    assert found["top1"] == pytest.approx(100 / classes)
    assert not counts or found["top5"] == pytest.approx(100 * 5 / classes)


def test_processes_add_up():
    """Of processes with different numbers of images, one of which has none."""
    whole = counted((PREDICTED, TRUE))
    parts = [counted((PREDICTED[:2], TRUE[:2])), counted(), counted((PREDICTED[2:], TRUE[2:]))]
    merged = ClassificationMetrics(NAMES)
    merged.merge([part.state() for part in parts])
    assert merged.compute() == pytest.approx(whole.compute())
    assert torch.equal(merged.confusion().entries, whole.confusion().entries)
    six = [str(i) for i in range(6)]
    merged, parts = ClassificationMetrics(six), [ClassificationMetrics(six) for _ in range(2)]
    for label, part in enumerate(parts):
        part.update(torch.arange(6.0)[None], torch.tensor([label]))  # class 0 is the sixth best, class 1 the fifth
    merged.merge(part.state() for part in parts)
    assert merged.compute()["top5"] == 50


def test_nothing_seen(tmp_path):
    metrics = counted()
    assert all(math.isnan(value) for value in metrics.compute().values())
    confusion = metrics.confusion()
    assert confusion.matrix().tolist() == [[0] * 3] * 3
    assert math.isnan(confusion.mean_accuracy())
    confusion.write(tmp_path / "nothing.json", metrics.compute())
    content = json.loads((tmp_path / "nothing.json").read_text(), parse_constant=pytest.fail)
    assert content["metrics"] == {"top1": None, "loss": None}
    assert Confusion.read(tmp_path / "nothing.json").images == 0


def test_the_file_says_what_was_counted(tmp_path):
    metrics = counted((PREDICTED, TRUE))
    metrics.confusion().write(tmp_path / "confusion.json", metrics.compute())
    text = (tmp_path / "confusion.json").read_text()
    content = json.loads(text)
    assert content["classes"] == NAMES
    assert content["images"] == 7
    assert content["matrix"] == MATRIX
    assert content["mistakes"][0] == {"true": "dog", "predicted": "cat", "images": 2}
    assert content["by_class"][0] == {"name": "cat", "images": 4, "correct": 2, "accuracy": 50.0}
    assert content["by_class"][2] == {"name": "horse", "images": 0, "correct": 0, "accuracy": None}
    assert content["metrics"]["top1"] == pytest.approx(100 * 3 / 7)
    assert "\n    [2, 1, 1],\n    [2, 1, 0]" in text  # a row a line
    again = Confusion.read(tmp_path / "confusion.json")
    assert again.classes == NAMES
    assert torch.equal(again.entries, metrics.confusion().entries)


def test_of_very_many_classes_no_matrix_is_made(tmp_path):
    names = [str(i) for i in range(21_841)]
    metrics = ClassificationMetrics(names)
    metrics.update(torch.eye(len(names))[[5, 5, 21_840]], torch.tensor([5, 7, 21_840]))
    confusion = metrics.confusion()
    assert confusion.entries.tolist() == [[5, 5, 1], [7, 5, 1], [21_840, 21_840, 1]]
    confusion.write(tmp_path / "many.json", metrics.compute())
    assert "matrix" not in json.loads((tmp_path / "many.json").read_text())
    assert (tmp_path / "many.json").stat().st_size < 100 * len(names)
    assert torch.equal(Confusion.read(tmp_path / "many.json").entries, confusion.entries)
    most = Confusion(names[:MOST_IN_FULL], confusion.entries[:2])
    most.write(tmp_path / "most.json", {})
    assert json.loads((tmp_path / "most.json").read_text())["matrix"][7][5] == 1


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"classes": ["a"]}',
     '{"classes": ["a", "b"], "matrix": [[1, 2]]}', '{"classes": 3, "matrix": []}',
     '{"classes": ["a"], "entries": [[0, 1, 5]]}', '{"classes": ["a"], "matrix": [["x"]]}'],
)  # fmt: skip
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "confusion.json").write_text(content)
    with pytest.raises(DataError, match=r"confusion\.json: not a confusion matrix"):
        Confusion.read(tmp_path / "confusion.json")
