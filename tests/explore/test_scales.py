"""What deformation does to an image, in a sentence."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from deformvit.explore.look import Look
from deformvit.explore.scales import Scales, found, scales, verdict
from deformvit.results import ClassificationResult, DetectionResult, SegmentationResult

IMAGE = {"source": Image.new("RGB", (4, 4)), "hw": (4, 4), "classes": ["ant", "bee", "cow"], "index": 0}


def seen(result, deformable=True):
    """A look of which only the result matters."""
    return SimpleNamespace(result=result, trace=SimpleNamespace(deformable=[object()] if deformable else []))


def chances(*values):
    scores, labels = torch.tensor(values).sort(descending=True)
    return seen(ClassificationResult(**IMAGE, labels=labels, scores=scores))


def objects(*scores):
    count = len(scores)
    return seen(DetectionResult(
        **IMAGE, boxes=torch.zeros(count, 4), labels=torch.zeros(count, dtype=torch.long), scores=torch.tensor(scores),
        masks=None,
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("none", "full", "expected"),
    [
        (
            chances(0.5, 0.3, 0.2),
            chances(0.7, 0.2, 0.1),
            "Deformation raises the probability of ant by 20.0 percentage points.",
        ),
        (
            chances(0.9, 0.1, 0.0),
            chances(0.8, 0.2, 0.0),
            "Deformation lowers the probability of ant by 10.0 percentage points.",
        ),
        (
            chances(0.9, 0.1, 0.0),
            chances(0.9001, 0.0999, 0.0),
            "Deformation changes the probability of ant by less than 0.1 percentage points.",
        ),
        (
            chances(0.5, 0.3, 0.2),
            chances(0.3, 0.2, 0.5),
            "Deformation changes the answer: without offsets ant (50.0 %), with them cow (50.0 %).",
        ),
        (objects(0.9), objects(0.9, 0.8), "With its offsets the model finds 2 objects, without them 1 object."),
        (seen(None), seen(None), ""),
        (seen(chances(1.0).result, deformable=False), seen(chances(1.0).result, deformable=False), ""),
    ],
)
def test_the_sentence(none, full, expected):
    assert verdict(Scales(none, full, full)) == expected


def test_the_sentence_of_a_label_map():
    dash = "\N{EN DASH}"
    before, after = torch.zeros(4, 4, dtype=torch.long), torch.zeros(4, 4, dtype=torch.long)
    after[0, :2] = 1
    none, full = (seen(SegmentationResult(**IMAGE, label_map=labels)) for labels in (before, after))
    assert verdict(Scales(none, full, full)) == "Deformation changes the class of 12.5 % of the pixels."
    assert [row["texts"] for row in found(Scales(none, none, full))] == [
        ["100.0 %", "100.0 %", "87.5 %"],
        [dash, dash, "12.5 %"],
    ]


def test_one_pass_is_enough_without_offsets():
    asked = []

    def at(scale) -> Look:
        asked.append(scale)
        return seen(None, deformable=False)

    looks = scales(at, 0.5)
    assert asked == [1.0]
    assert looks.none is looks.shown is looks.full
