"""Comparing weights by names and shapes."""

from __future__ import annotations

import torch

from deformvit.models.state import compare, shapes

EXPECTED = {"stem.weight": (8, 3), "stem.bias": (8,), "head.weight": (5, 8), "head.bias": (5,)}


def test_equal_weights_do_not_differ():
    difference = compare(EXPECTED, {name: list(shape) for name, shape in reversed(EXPECTED.items())})  # as a header
    assert not difference
    assert str(difference) == "no difference"


def test_every_kind_of_difference_is_listed_and_the_first_named():
    given = {"norm.weight": (8,), "stem.weight": (8, 1), "head.weight": (7, 8), "norm.bias": (8,)}
    difference = compare(EXPECTED, given)
    assert difference
    assert difference.missing == ["stem.bias", "head.bias"]
    assert difference.unexpected == ["norm.weight", "norm.bias"]
    assert difference.other_shapes == {"stem.weight": ((8, 3), (8, 1)), "head.weight": ((5, 8), (7, 8))}
    assert str(difference) == (
        "2 missing weights (stem.bias, ...); 2 unexpected weights (norm.weight, ...); "
        "2 weights of other shapes (stem.weight: (8, 1), expected (8, 3), ...)"
    )


def test_each_kind_alone_is_a_difference():
    given = dict(EXPECTED)
    del given["head.bias"]
    assert compare(EXPECTED, given)
    assert str(compare(EXPECTED, given)) == "1 missing weight (head.bias)"
    assert compare(given, EXPECTED)
    assert str(compare(given, EXPECTED)) == "1 unexpected weight (head.bias)"
    assert compare(EXPECTED, EXPECTED | {"head.bias": (6,)})
    assert str(compare({"a": (1,)}, {"a": ()})) == "1 weight of another shape (a: (), expected (1,))"


def test_shapes_of_tensors_without_what_is_ignored():
    weights = {"stem.weight": torch.ones(2, 3), "head.weight": torch.ones(4), "headless": torch.tensor(1.0)}
    assert shapes(weights, ignore=("head.", "norm.")) == {"stem.weight": (2, 3), "headless": ()}
    assert shapes(weights) == {"stem.weight": (2, 3), "head.weight": (4,), "headless": ()}
