"""What deformation does to one image: predictions at three scales of the offsets, side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deformvit.explore.look import Look
from deformvit.results import ClassificationResult, Finding, SegmentationResult

CLASSES = 8
"""Classes that are told of."""
_ABSENT = Finding("", 0.0, "–")  # noqa: RUF001 - a dash for nothing


@dataclass(frozen=True)
class Scales:
    """An image through a model at three scales of the offsets."""

    none: Look
    """At 0: keys stay on the reference grid."""
    shown: Look
    full: Look
    """At 1: as the model was trained."""


def scales(at: Callable[[float], Look], shown: float) -> Scales:
    """The three passes; one is all for a model without offsets.

    Args:
        at: the pass at a scale of the offsets.
        shown: scale that is shown.
    """
    full = at(1.0)
    if not full.trace.deformable:
        return Scales(full, full, full)
    none = at(0.0)
    return Scales(none, {0.0: none, 1.0: full}.get(shown) or at(shown), full)


def found(looks: Scales) -> list[dict[str, Any]]:
    """What the model says of the image, class by class, with values from 0 to 1 and texts of the three scales.

    The classes are the strongest with all offsets or none, in the order of all. They are the same at any scale that is
    shown.
    """
    told = [_findings(look) for look in (looks.none, looks.shown, looks.full)]
    none, full = told[0], told[2]
    everything = sorted(full | none, key=lambda name: -max(one.get(name, _ABSENT).value for one in (none, full)))
    names = sorted(everything[:CLASSES], key=lambda name: -full.get(name, _ABSENT).value)
    return [
        {
            "name": name,
            "values": [round(one.get(name, _ABSENT).value, 4) for one in told],
            "texts": [one.get(name, _ABSENT).text for one in told],
        }
        for name in names
    ]


def verdict(looks: Scales) -> str:
    """What deformation does to the prediction, in a sentence with numbers; empty without points or predictions."""
    none, full = looks.none.result, looks.full.result
    if none is None or full is None or not looks.full.trace.deformable:
        return ""
    if isinstance(full, SegmentationResult) and isinstance(none, SegmentationResult):
        share = float((full.label_map != none.label_map).float().mean())
        return f"Deformation changes the class of {100 * share:.1f} % of the pixels."
    if not isinstance(full, ClassificationResult):
        return f"With its offsets the model finds {full.headline()}, without them {none.headline()}."
    before, after = ({name: 100 * f.value for name, f in _findings(look).items()} for look in (looks.none, looks.full))
    was, now = max(before, key=before.__getitem__), max(after, key=after.__getitem__)
    if was != now:
        return (
            f"Deformation changes the answer: without offsets {was} ({before[was]:.1f} %), "
            f"with them {now} ({after[now]:.1f} %)."
        )
    change = after[now] - before[now]
    if abs(change) < 0.05:
        return f"Deformation changes the probability of {now} by less than 0.1 percentage points."
    word = "raises" if change > 0 else "lowers"
    return f"Deformation {word} the probability of {now} by {abs(change):.1f} percentage points."


def _findings(look: Look) -> dict[str, Finding]:
    """By class; of classes with the same name, as two of ImageNet's have, the stronger."""
    return {finding.name: finding for finding in reversed(look.result.findings())} if look.result else {}
