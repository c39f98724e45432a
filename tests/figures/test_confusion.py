"""Pictures of confusion matrices show the counts where they belong, for few classes and for many."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deformvit import UserError, figures
from deformvit.figures.confusion import EMPTY, NAMED

MATRIX = [[2, 0, 12], [0, 0, 0], [1, 0, 1234]]


def texts(axis):
    return {(round(text.get_position()[0]), round(text.get_position()[1])): text.get_text() for text in axis.texts}


def colours(axis):
    return np.asarray(axis.images[0].get_array())


def test_numbers_names_and_accuracies():
    figure = figures.confusion(MATRIX, ["cat", "dog", "$horse_1$"], title="5 % of $x")
    figure.canvas.draw()  # a dollar sign begins no formula
    axis, *_ = figure.axes
    assert texts(axis) == {(0, 0): "2", (2, 0): "12", (0, 2): "1", (2, 2): "1234"}  # (column, row)
    assert [label.get_text() for label in axis.get_xticklabels()] == ["cat", "dog", "$horse_1$"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["cat", "dog", "$horse_1$"]
    (accuracies,) = axis.child_axes
    assert [label.get_text() for label in accuracies.get_yticklabels()] == ["14 %", "", "100 %"]


def test_right_is_blue_wrong_is_red_and_a_class_without_images_grey():
    seen = colours(figures.confusion(MATRIX, ["a", "b", "c"]).axes[0])
    for row, column in ((0, 0), (2, 2)):
        assert seen[row, column, 2] > seen[row, column, 0] + 0.1
    for row, column in ((0, 2), (2, 0)):
        assert seen[row, column, 0] > seen[row, column, 2]
    assert seen[0, 2].sum() < seen[2, 0].sum()  # 12 of 14 are darker than 1 of 1235
    assert (seen[0, 1] == 1).all()
    np.testing.assert_allclose(seen[1], [EMPTY] * 3)


@pytest.mark.parametrize("classes", [1, 3, 10, 50, NAMED, NAMED + 1, 200, 1000])
def test_every_number_of_classes_is_drawn(classes, tmp_path):
    counts = 5 * torch.eye(classes, dtype=torch.int64)
    counts[0, -1] += 3
    names = [f"class number {i} of many" for i in range(classes)]
    figure = figures.confusion(counts, names, title="many")
    figure.savefig(tmp_path / "drawn.png", dpi=40)
    axis = figure.axes[0]
    assert colours(axis).shape == (classes, classes, 3)
    shown = [label.get_text() for label in axis.get_yticklabels()]
    assert shown[0] == names[0]
    assert len(shown) == classes if classes <= NAMED else 20 < len(shown) <= 60
    if classes > NAMED:
        listed = "\n".join(text.get_text() for text in figure.axes[1].texts)
        assert f"62 %  {names[0]}" in listed  # 5 of 8
        assert f"3  {names[0]} as {names[-1]}" in listed
        assert names[1] not in listed  # it has no mistakes
        assert colours(axis)[0, -1].sum() < 2.6  # one cell of a million, and it can be seen


def test_wrong_shapes_are_told():
    with pytest.raises(UserError, match=r"expected a matrix \(2, 2\) of at least one class, got \(3, 3\)"):
        figures.confusion(MATRIX, ["a", "b"])
    with pytest.raises(UserError, match="at least one class"):
        figures.confusion(torch.zeros(0, 0), [])
