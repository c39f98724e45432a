"""Names and shapes of given weights beside those that a model expects."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Difference:
    """Differences between given weights and a model's; as text, one line with the first of each kind.

    False if there are none.
    """

    missing: list[str]
    """Expected names that are not given, in the model's order."""
    unexpected: list[str]
    """Given names that the model does not have, in the given order."""
    other_shapes: dict[str, tuple[Shape, Shape]]
    """Expected and given shape of every weight in which they differ, in the model's order."""

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.other_shapes)

    def __str__(self) -> str:
        shapes = [f"{n}: {given}, expected {expected}" for n, (expected, given) in self.other_shapes.items()]
        parts = (
            _count("missing weight", "missing weights", self.missing),
            _count("unexpected weight", "unexpected weights", self.unexpected),
            _count("weight of another shape", "weights of other shapes", shapes),
        )
        return "; ".join(part for part in parts if part) or "no difference"


def _count(one: str, several: str, items: Collection[str]) -> str:
    if not items:
        return ""
    return f"{len(items)} {one if len(items) == 1 else several} ({next(iter(items))}{', ...' * (len(items) > 1)})"


def shapes(weights: Mapping[str, Tensor], ignore: tuple[str, ...] = ()) -> dict[str, Shape]:
    """Shapes by name, without the names that start with one of ``ignore``."""
    return {name: tuple(tensor.shape) for name, tensor in weights.items() if not name.startswith(ignore)}


def compare(expected: Mapping[str, Sequence[int]], given: Mapping[str, Sequence[int]]) -> Difference:
    """Compare weights by names and shapes alone, so that a file's header is enough to say whether it fits.

    Args:
        expected: shapes of the model's weights.
        given: shapes of a file's.
    """
    pairs = {name: (tuple(shape), tuple(given[name])) for name, shape in expected.items() if name in given}
    return Difference(
        missing=[name for name in expected if name not in given],
        unexpected=[name for name in given if name not in expected],
        other_shapes={name: (ours, theirs) for name, (ours, theirs) in pairs.items() if ours != theirs},
    )
