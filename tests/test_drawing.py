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


def test_boxes_have_the_colour_of_their_class_and_a_halo():
    picture = drawn(prediction(), threshold=0.0, names=False)
    assert picture.shape == (HEIGHT, WIDTH, 3)
    for (left, top, right, bottom), colour in (((10, 20, 50, 70), COLOURS[1]), ((70, 30, 120, 60), COLOURS[0])):
        for y, x in ((top, left), (top, right), (bottom, left), (bottom, right), (top, (left + right) // 2)):
            assert tuple(picture[y, x]) == colour
        assert (picture[top + 1 : bottom, left + 1 : right] == 128).all()
        halo = set(map(tuple, picture[top - 1, left - 1 : right + 2]))
        assert halo == {(255, 255, 255) if colour == COLOURS[1] else (0, 0, 0)}  # around the dark blue, white


@pytest.mark.parametrize(("threshold", "expected"), [(0.95, None), (0.5, (9, 19, 51, 71)), (0.4, (9, 19, 121, 71))])
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


def test_masks_are_tinted_with_an_outline_and_a_halo():
    picture = drawn(prediction(masks=True), threshold=0.5, names=False)
    colour = np.array(COLOURS[1])
    assert (picture[30, 20:40] == colour).all()  # the outline
    assert (picture[30:60, 39] == colour).all()
    assert np.abs(picture[31:59, 21:39] - (0.7 * 128 + 0.3 * colour)).max() <= 1
    assert np.abs(picture[29, 20:40] - (0.4 * 128 + 0.6 * 255)).max() <= 1
    assert (picture[28, 20:40] == 128).all()
    assert (picture[40:50, 80:110] == 128).all()  # that of the other object is below the threshold


def test_the_highest_score_is_on_top():
    boxes = torch.tensor([[10.0, 20.0, 60.0, 70.0], [10.0, 20.0, 60.0, 70.0]])
    picture = drawn(prediction() | {"boxes": boxes}, threshold=0.0, names=False)
    assert tuple(picture[20, 10]) == COLOURS[1]


def words(found, **options):
    """Where words are on a picture, in pixels of the image, enlarged ``times``: (times, mask)."""
    with_words = drawn(found, **options)
    times = with_words.shape[1] // WIDTH
    without = drawn({name: value[:0] for name, value in found.items()}, **options)
    changed = (with_words[: times * HEIGHT] != without[: times * HEIGHT]).any(-1)
    for left, top, right, bottom in found["boxes"].tolist():  # boxes with their halo
        box = [round(times * v) for v in (left, top, right, bottom)]
        changed[box[1] - 1 : box[3] + 2, box[0] - 1 : box[2] + 2] = False
    return times, changed


def test_small_images_are_enlarged_and_words_stand_beside_objects():
    found = prediction()
    times, beside = words(found, threshold=0.0)
    assert times == 5  # 96 pixels are too few for words
    assert beside.sum() > 400  # words, none of them within a box
    assert drawn(found)[times * HEIGHT :].size > 0  # the legend
    below = drawn(found)[times * HEIGHT :].reshape(-1, 3)
    assert (below == COLOURS[1]).all(1).sum() > 50  # the colour of the class beside its number
    assert not (below == COLOURS[0]).all(1).any()


def test_words_never_hide_objects():
    """Masks that fill the picture leave no room for words; those of a half leave room on the other."""
    boxes = torch.tensor([[0.0, 0.0, WIDTH, HEIGHT]])
    whole = {"boxes": boxes, "scores": torch.tensor([0.9]), "labels": torch.tensor([1])}
    full = torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool)
    plain = drawn(whole | {"masks": full}, names=False).repeat(5, 0).repeat(5, 1)
    named = drawn(whole | {"masks": full})[: 5 * HEIGHT]
    inner = slice(10, -10)
    assert np.abs(named[inner, inner].astype(int) - plain[inner, inner]).max() <= 1
    half = full.clone()
    half[:, :, : WIDTH // 2] = False
    named = drawn(whole | {"masks": half})[: 5 * HEIGHT]
    tinted = 0.7 * 128 + 0.3 * np.array(COLOURS[1])
    assert np.abs(named[10:-10, 5 * WIDTH // 2 + 10 : -10] - tinted).max() <= 1  # nothing is written on the object
    assert (named[10:-10, 10 : 5 * WIDTH // 2 - 10] == COLOURS[1]).all(-1).sum() > 100  # but beside it


def test_annotated_objects_have_names_and_no_scores():
    found = prediction()
    del found["scores"]
    assert drawn(found).shape[0] > 5 * HEIGHT
    one_class = drawn(found | {"labels": torch.tensor([0, 0])}, ("cell",))
    assert one_class.shape[0] > 5 * HEIGHT


def test_an_image_without_objects():
    found = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.long)}
    picture = drawn(found)
    assert (picture[: 5 * HEIGHT] == 128).all()
    assert (picture[5 * HEIGHT :] < 100).any()  # text


def label_map():
    """A quarter of class 2, the rest of class 0."""
    found = torch.zeros(HEIGHT, WIDTH, dtype=torch.long)
    found[:, 96:] = 2
    return found


@pytest.mark.parametrize("opacity", [0.0, 0.3, 1.0])
def test_label_maps_are_blended_with_the_image(opacity):
    colours = np.array(drawing.palette(3))
    options = {"opacity": opacity, "names": False}
    picture = np.asarray(drawing.labels(GRAY, label_map(), ["sky", "road", "car"], **options)).astype(float)
    assert picture.shape == (HEIGHT, WIDTH, 3)
    for columns, label, share in (
        (slice(0, 95), 0, opacity), (slice(95, 96), 0, 2 * opacity), (slice(96, 97), 2, 2 * opacity),
        (slice(97, WIDTH), 2, opacity),
    ):  # fmt: skip
        share = min(share, 1)
        expected = (1 - share) * 128 + share * colours[label]
        assert np.abs(picture[:, columns] - expected).max() <= 1


def test_labels_to_ignore_are_not_painted():
    found = label_map()
    found[10:20, 10:20] = 255
    picture = np.asarray(drawing.labels(GRAY, found, ["sky", "road", "car"], opacity=1.0, names=False))
    assert (picture[10:20, 10:20] == 128).all()


def test_the_background_stays_as_it_is():
    picture = np.asarray(drawing.labels(GRAY, label_map(), ["Background", "road", "car"], names=False))
    assert (picture[:, :96] == 128).all()
    assert (picture[:, 97:] != 128).any()
    assert "background" in drawing.BACKGROUND


def test_the_legend_lists_the_classes_that_occur_by_area():
    colours = drawing.palette(3)
    picture = np.asarray(drawing.labels(GRAY, label_map(), ["sky", "road", "car"], opacity=0.0))
    assert picture.shape[0] == 5 * HEIGHT
    legend = picture[:, 5 * WIDTH :]
    rows = [np.nonzero((legend == colour).all(-1).any(1))[0] for colour in colours]
    assert len(rows[1]) == 0  # no road
    assert len(rows[0]) == len(rows[2]) > 10
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
