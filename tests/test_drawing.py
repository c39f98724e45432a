"""Drawn predictions: colours, thresholds, masks, legends and label images, pixel by pixel."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from deformvit import drawing

HEIGHT, WIDTH = 96, 128
GRAY = torch.full((3, HEIGHT, WIDTH), 0.5)
COLOURS = drawing.palette(2)


def prediction(masks=False):
    """Two objects that do not touch: class 1 with a score of 0.9, class 0 with 0.4."""
    boxes = torch.tensor([[10.0, 20.0, 50.0, 70.0], [70.0, 30.0, 120.0, 60.0]])
    found = {"boxes": boxes, "scores": torch.tensor([0.9, 0.4]), "labels": torch.tensor([1, 0])}
    if masks:
        found["masks"] = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
        found["masks"][0, 30:60, 20:40] = True
        found["masks"][1, 40:50, 80:110] = True
    return found


def drawn(found, classes=("red", "green"), **options):
    return np.asarray(drawing.detections(GRAY, found, classes, **options))


def changed(picture):
    """Bounding box of the pixels that are not gray: left, top, right, bottom, all included."""
    rows, columns = np.nonzero((picture[:HEIGHT] != 128).any(-1))
    return columns.min(), rows.min(), columns.max(), rows.max()


def test_colours_of_many_classes_differ():
    assert len(set(drawing.palette(60))) == 60
    assert drawing.palette(60)[:5] == drawing.palette(5)  # a class keeps its colour when others are added
    assert all(0 <= value <= 255 for colour in drawing.palette(60) for value in colour)


def test_boxes_have_the_colour_of_their_class():
    picture = drawn(prediction(), threshold=0.0, names=False)
    assert picture.shape == (HEIGHT, WIDTH, 3)
    for (left, top, right, bottom), colour in (((10, 20, 50, 70), COLOURS[1]), ((70, 30, 120, 60), COLOURS[0])):
        for y, x in ((top, left), (top, right), (bottom, left), (bottom, right), (top, (left + right) // 2)):
            assert tuple(picture[y, x]) == colour
        assert (picture[top + 1 : bottom, left + 1 : right] == 128).all()


@pytest.mark.parametrize(("threshold", "expected"), [(0.95, None), (0.5, (10, 20, 50, 70)), (0.4, (10, 20, 120, 70))])
def test_objects_below_the_threshold_are_not_drawn(threshold, expected):
    picture = drawn(prediction(), threshold=threshold, names=False)
    if expected is None:
        assert (picture == 128).all()
    else:
        assert changed(picture) == expected


def test_objects_of_a_single_class_have_different_colours():
    found = prediction() | {"labels": torch.tensor([0, 0])}
    picture = drawn(found, ("cell",), threshold=0.0, names=False)
    assert {tuple(picture[20, 10]), tuple(picture[30, 70])} == set(COLOURS)


def test_masks_are_half_transparent_with_an_outline():
    picture = drawn(prediction(masks=True), threshold=0.5, names=False)
    colour = np.array(COLOURS[1])
    assert (picture[30, 20:40] == colour).all()  # the outline
    assert (picture[30:60, 39] == colour).all()
    assert np.abs(picture[31:59, 21:39] - (0.55 * 128 + 0.45 * colour)).max() <= 1
    assert (picture[29, 20:40] == 128).all()
    assert (picture[40:50, 80:110] == 128).all()  # that of the other object is below the threshold


def test_the_highest_score_is_on_top():
    boxes = torch.tensor([[10.0, 20.0, 60.0, 70.0], [10.0, 20.0, 60.0, 70.0]])
    picture = drawn(prediction() | {"boxes": boxes}, threshold=0.0, names=False)
    assert tuple(picture[20, 10]) == COLOURS[1]


def test_names_are_written_where_they_fit_and_objects_counted_below():
    found = prediction()
    plain, named = drawn(found, names=False), drawn(found)
    assert named.shape[1] == WIDTH
    assert named.shape[0] > HEIGHT + 10
    label = (named[:HEIGHT] != plain).any(-1)
    rows, columns = np.nonzero(label)
    assert rows.max() <= 20  # above the box
    assert columns.min() >= 10
    assert columns.max() <= 50
    below = named[HEIGHT:].reshape(-1, 3)
    assert (below == COLOURS[1]).all(1).sum() > 50  # the colour of the class beside its number
    assert not (below == COLOURS[0]).all(1).any()
    narrow = found | {"boxes": torch.tensor([[10.0, 20.0, 14.0, 70.0], [70.0, 30.0, 120.0, 60.0]])}
    assert np.array_equal(drawn(narrow)[:HEIGHT], drawn(narrow, names=False))


def test_an_image_without_objects():
    found = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.long)}
    picture = drawn(found)
    assert (picture[:HEIGHT] == 128).all()
    assert (picture[HEIGHT:] < 100).any()  # text


def label_map():
    """A quarter of class 2, the rest of class 0."""
    found = torch.zeros(HEIGHT, WIDTH, dtype=torch.long)
    found[:, 96:] = 2
    return found


@pytest.mark.parametrize("opacity", [0.0, 0.6, 1.0])
def test_label_maps_are_blended_with_the_image(opacity):
    colours = np.array(drawing.palette(3))
    picture = np.asarray(drawing.labels(GRAY, label_map(), ["sky", "road", "car"], opacity=opacity)).astype(float)
    for columns, label in ((slice(0, 96), 0), (slice(96, WIDTH), 2)):
        expected = (1 - opacity) * 128 + opacity * colours[label]
        assert np.abs(picture[:HEIGHT, columns] - expected).max() <= 1


def test_the_legend_lists_the_classes_that_occur_by_area():
    colours = drawing.palette(3)
    picture = np.asarray(drawing.labels(GRAY, label_map(), ["sky", "road", "car"], opacity=0.0))
    legend = picture[:, WIDTH:]
    rows = [np.nonzero((legend == colour).all(-1).any(1))[0] for colour in colours]
    assert len(rows[1]) == 0  # no road
    assert len(rows[0]) == len(rows[2]) == 11
    assert rows[0].max() < rows[2].min()  # sky first, with three quarters


def test_label_images_hold_the_labels():
    found = label_map()
    buffer = io.BytesIO()
    drawing.label_image(found, ["sky", "road", "car"]).save(buffer, "PNG")
    stored = Image.open(buffer)
    assert stored.mode == "P"
    assert np.array_equal(np.asarray(stored), found.numpy())
    assert stored.convert("RGB").getpixel((100, 0)) == drawing.palette(3)[2]
    buffer = io.BytesIO()
    drawing.label_image(found + 1000, [str(i) for i in range(1003)]).save(buffer, "PNG")
    assert np.array_equal(np.asarray(Image.open(buffer)), found.numpy() + 1000)
