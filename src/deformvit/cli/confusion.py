"""Prints a classifier's accuracy by class and draws its confusion matrix, after training and for ``deformvit eval``."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deformvit.metrics.classification import ClassAccuracy, Confusion

MOST_LINES = 20
"""Classes that are printed, the worst."""


def show_run(folder: Path) -> None:
    """What a run's best model mistakes: draws it and prints the classes; nothing of a run that is no classifier's."""
    from deformvit.metrics.classification import CONFUSION, Confusion

    path = folder / CONFUSION
    if not path.is_file():
        return
    confusion = Confusion.read(path)
    if confusion.images:
        drawn = draw(confusion, path.with_suffix(".png"), folder.name)
        print(f"confusion matrix: {' and '.join(str(file) for file in (*drawn, path))}")
        print_by_class(confusion, "best weights, ")


def write(confusion: Confusion, metrics: dict[str, float], folder: Path, title: str) -> None:
    """The files of an evaluation, whose names are printed.

    Args:
        confusion, metrics: of the evaluation.
        folder: to write to.
        title: of the picture.
    """
    from deformvit.metrics.classification import CONFUSION
    from deformvit.storage import write_atomically

    path = folder / CONFUSION
    write_atomically(path, lambda file: confusion.write(file, metrics))
    drawn = draw(confusion, path.with_suffix(".png"), title)
    print(f"\nconfusion matrix: {' and '.join(str(file) for file in (*drawn, path))}")


def print_by_class(confusion: Confusion, what: str = "") -> None:
    """A line for every class, the worst first; of many classes the worst alone.

    Args:
        confusion: of an evaluation.
        what: said before the number of images.
    """
    by_class = confusion.by_class()
    measured = sorted((entry for entry in by_class if entry.images), key=lambda entry: entry.percent)
    shown, others = measured[:MOST_LINES], measured[MOST_LINES:]
    if not shown:
        return
    print(f"\naccuracy by class ({what}{confusion.images:,} images), the lowest first:")
    width = min(max(len(_short(entry.name)) for entry in shown), 32)
    counts = [f"{entry.correct} of {entry.images}" for entry in shown]
    longest = max(map(len, counts))
    for entry, count in zip(shown, counts, strict=True):
        line = f"  {_short(entry.name):<{width}}  {entry.percent:>5.1f} %  {count:>{longest}}  {_mistakes(entry)}"
        print(line.rstrip())
    if others:
        print(f"  and {len(others):,} more classes, from {others[0].percent:.1f} to {others[-1].percent:.1f} %")
    print(f"  mean of the classes {confusion.mean_accuracy():.1f} %")
    if missing := [_short(entry.name) for entry in by_class if not entry.images]:
        more = f" and {len(missing) - 5:,} more" if len(missing) > 5 else ""
        print(f"  no images of {', '.join(missing[:5])}{more}")


def _mistakes(entry: ClassAccuracy) -> str:
    parts = [f"{mistake.images} as {_short(mistake.predicted)}" for mistake in entry.mistakes[:3]]
    return ", ".join(parts) + (", ..." if len(entry.mistakes) > 3 else "")


def _short(name: str) -> str:
    name = "".join(letter if letter.isprintable() else " " for letter in name)
    return name if len(name) <= 32 else f"{name[:29]}..."


def draw(confusion: Confusion, path: Path, title: str = "") -> list[Path]:
    """Draw the matrix; returns the file's path, or nothing, and says why, where there is no picture."""
    from deformvit.metrics.classification import MOST_IN_FULL
    from deformvit.storage import write_atomically

    if not confusion.images:
        return []
    if len(confusion.classes) > MOST_IN_FULL:
        print(f"deformvit: no {path.name}: it is drawn of up to {MOST_IN_FULL:,} classes", file=sys.stderr)
        return []
    try:
        from deformvit import figures
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "matplotlib":
            raise
        print(f"deformvit: no {path.name}: it needs matplotlib: pip install 'deformvit[figures]'", file=sys.stderr)
        return []
    matrix = confusion.matrix()
    right = f"{100 * int(matrix.trace()) / confusion.images:.1f} % of {confusion.images:,} images"
    figure = figures.confusion(matrix, confusion.classes, ": ".join(part for part in (title, right) if part))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # names in scripts that the font lacks: drawn as boxes
        write_atomically(path, lambda file: figure.savefig(file, dpi=150, format="png"))
    return [path]
