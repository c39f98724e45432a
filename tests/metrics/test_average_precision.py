"""COCO's average precision, against cases that can be worked out by hand."""

from __future__ import annotations

import json
import math
import random
import sys

import numpy as np
import pytest
import torch

from deformvit import UserError
from deformvit.data import DataError
from deformvit.data.detection import open_coco
from deformvit.metrics.detection import CocoMetrics, coco_results, from_torchvision

mask_api = pytest.importorskip("faster_coco_eval.core.mask")

HEIGHT, WIDTH = 150, 250
NAMES = [f"{kind}_AP{part}" for kind in ("box", "mask") for part in ("", "50", "75", "s", "m", "l")]
SQUARE = [30, 20, 50, 40]  # small


def pixels(box):
    found = np.zeros((HEIGHT, WIDTH), np.uint8)
    x1, y1, x2, y2 = box
    found[y1:y2, x1:x2] = 1
    return found


def run_lengths(array):
    encoded = mask_api.encode(np.asfortranarray(array))
    return {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()}


def thing(box, image=1, category=3, **more):
    """An annotation of a filled box, x1, y1, x2, y2."""
    x1, y1, x2, y2 = box
    size = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
    return {"image_id": image, "category_id": category, **size, "segmentation": run_lengths(pixels(box)), **more}


def write(tmp_path, annotations, images=1):
    file = tmp_path / "val.json"
    listed = [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in range(1, images + 1)]
    numbered = [{"id": i, **annotation} for i, annotation in enumerate(annotations)]  # from 0: a trap of the evaluator
    categories = [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}]
    file.write_text(json.dumps({"images": listed, "annotations": numbered, "categories": categories}))
    return file


def found(boxes, scores=None, labels=None, masks=None):
    """Detections; masks fill the boxes."""
    shapes = np.stack([np.zeros((HEIGHT, WIDTH)), *(map(pixels, boxes) if masks is None else masks)])[1:]
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "scores": torch.ones(len(boxes)) if scores is None else torch.tensor(scores),
        "labels": torch.zeros(len(boxes), dtype=torch.int64) if labels is None else torch.tensor(labels),
        "masks": torch.from_numpy(shapes).bool(),
    }


def measure(file, predictions, images=(1,), masks=True, **options):
    metrics = CocoMetrics(file, [3, 90], list(images), masks, **options)
    for image, prediction in predictions.items():
        metrics.update(image, prediction)
    return metrics.compute()


def same(values, expected):
    """Values of box and mask alike."""
    assert list(values) == NAMES
    for kind in ("box", "mask"):
        got = {name: values[f"{kind}_AP{name}"] for name in expected}
        assert got == pytest.approx(expected, abs=1e-9, nan_ok=True)


def shifted(box, x, y=0):
    return [box[0] + x, box[1] + y, box[2] + x, box[3] + y]


def test_perfect_detections(tmp_path):
    boxes = [SQUARE, [60, 10, 110, 60], [120, 0, 250, 150]]
    file = write(tmp_path, [thing(box, category=category) for box, category in zip(boxes, (3, 90, 3), strict=True)])
    values = measure(file, {1: found(boxes, labels=[0, 1, 0])})
    same(values, {"": 100, "50": 100, "75": 100, "s": 100, "m": 100, "l": 100})
    assert all(type(value) is float for value in values.values())
    only_boxes = measure(file, {1: found(boxes, labels=[0, 1, 0])}, masks=False)
    assert only_boxes == {name: values[name] for name in NAMES[:6]}


@pytest.mark.parametrize(("x", "y"), [(4, 0), (0, 4), (-4, 0)])
def test_shifted_detections(tmp_path, x, y):
    """4 of 20 pixels beside: 16 / 24 in common, enough for 0.5, 0.55, 0.6 and 0.65 of the ten thresholds."""
    values = measure(write(tmp_path, [thing(SQUARE)]), {1: found([shifted(SQUARE, x, y)])})
    same(values, {"": 40, "50": 100, "75": 0, "s": 40, "m": math.nan, "l": math.nan})


def test_thresholds(tmp_path):
    """35 / 45 = 0.778 in common passes 0.5 to 0.75."""
    box = [30, 20, 70, 60]
    values = measure(write(tmp_path, [thing(box)]), {1: found([shifted(box, 0, 5)])})
    same(values, {"": 60, "50": 100, "75": 100, "s": math.nan, "m": 60, "l": math.nan})


def test_masks_are_compared_apart_from_boxes(tmp_path):
    """A right box with half of the mask: 0.5 in common is enough for one threshold."""
    file = write(tmp_path, [thing(SQUARE)])
    values = measure(file, {1: found([SQUARE], masks=[pixels([30, 20, 50, 30])])})
    assert (values["box_AP"], values["mask_AP"], values["mask_AP50"]) == (100, pytest.approx(10), 100)
    values = measure(file, {1: found([[0, 0, 9, 9]], masks=[pixels(SQUARE)])})
    assert (values["box_AP"], values["mask_AP"]) == (0, 100)


def test_precision_and_recall(tmp_path):
    """Right, wrong, right: precision 1 up to recall 0.5, then 2 / 3, read at 101 recalls."""
    other = [100, 100, 120, 120]
    file = write(tmp_path, [thing(SQUARE), thing(other)])
    boxes = [SQUARE, [200, 20, 220, 40], other]
    same(measure(file, {1: found(boxes, [0.9, 0.8, 0.7])}), {"": 100 * (51 + 50 * 2 / 3) / 101})
    same(measure(file, {1: found(boxes, [0.7, 0.8, 0.9])}), {"": 100 * (51 + 50 * 2 / 3) / 101})
    same(measure(file, {1: found(boxes, [0.8, 0.9, 0.7])}), {"": 100 * 2 / 3})
    same(measure(file, {1: found([SQUARE])}), {"": 100 * 51 / 101})
    same(measure(file, {1: found([SQUARE, SQUARE, other])}), {"": 100 * (51 + 50 * 2 / 3) / 101})  # found twice


def test_crowds_are_neither_to_be_found_nor_wrong_to_find(tmp_path):
    crowd, inside = [100, 50, 240, 140], [[110, 60, 130, 80], [150, 60, 170, 80]]
    predictions = {1: found([*inside, SQUARE], [0.9, 0.8, 0.7])}
    same(measure(write(tmp_path, [thing(SQUARE), thing(crowd, iscrowd=1)]), predictions), {"": 100, "50": 100})
    same(measure(write(tmp_path, [thing(SQUARE)]), predictions), {"": 100 / 3, "50": 100 / 3})


def test_classes_are_measured_apart(tmp_path):
    """Another class is wrong in the right place; classes without objects do not count, the others count alike."""
    file = write(tmp_path, [thing(SQUARE)])
    same(measure(file, {1: found([SQUARE], labels=[1])}), {"": 0, "50": 0})
    same(measure(file, {1: found([SQUARE, [90, 90, 99, 99]], [0.5, 0.9], labels=[0, 1])}), {"": 100})
    three = [SQUARE, [60, 10, 80, 30], [90, 10, 110, 30]]
    file = write(tmp_path, [thing(box, category=90) for box in three] + [thing(SQUARE, category=3)])
    same(measure(file, {1: found(three, labels=[1, 1, 1])}), {"": 50})


def test_sizes_are_those_of_masks(tmp_path):
    """A thin cross is a small object in a large box: wrong detections of it do not count among the large masks."""
    large, cross = [0, 0, 120, 120], np.zeros((HEIGHT, WIDTH), np.uint8)
    cross[70, 125:245] = cross[10:130, 180] = 1
    file = write(tmp_path, [thing(large)])
    values = measure(file, {1: found([large, [125, 10, 245, 130]], [0.5, 0.9], masks=[pixels(large), cross])})
    assert (values["box_APl"], values["mask_APl"]) == (pytest.approx(50), 100)
    assert values["mask_AP"] == pytest.approx(50)


def test_nothing_found(tmp_path):
    file = write(tmp_path, [thing(SQUARE)], images=2)
    expected = {"": 0, "50": 0, "75": 0, "s": 0, "m": math.nan, "l": math.nan}
    same(measure(file, {}, images=(1, 2)), expected)
    same(measure(file, {1: found([])}, images=(1, 2)), expected)
    same(measure(file, {2: found([SQUARE])}, images=(1, 2)), expected)


def test_nothing_to_find(tmp_path):
    values = measure(write(tmp_path, []), {1: found([SQUARE])})
    assert all(math.isnan(value) for value in values.values())


def test_only_the_given_images_count(tmp_path):
    file = write(tmp_path, [thing(SQUARE, 1), thing(SQUARE, 2), thing(SQUARE, 3)], images=3)
    predictions = {1: found([SQUARE]), 2: found([[200, 100, 220, 120]])}
    same(measure(file, predictions, images=(1,)), {"": 100})
    same(measure(file, predictions, images=(1, 3)), {"": 100 * 51 / 101})
    with pytest.raises(DataError, match=r"val\.json: no image has the id 4"):
        CocoMetrics(file, [3, 90], [1, 4], masks=False)


@pytest.mark.parametrize(("limit", "recalls"), [(1, 34), (2, 67), (3, 101), (100, 101)])
def test_most_detections_of_an_image(tmp_path, limit, recalls):
    boxes = [shifted(SQUARE, 30 * i) for i in range(3)]
    file = write(tmp_path, [thing(box) for box in boxes])
    same(measure(file, {1: found(boxes, [0.9, 0.8, 0.7])}, max_detections=limit), {"": 100 * recalls / 101})


def test_more_than_a_hundred_detections(tmp_path):
    boxes = [[10 * i, 10 * j, 10 * i + 8, 10 * j + 8] for i in range(12) for j in range(12)]
    file = write(tmp_path, [thing(box) for box in boxes])
    same(measure(file, {1: found(boxes)}, max_detections=200), {"": 100})
    assert measure(file, {1: found(boxes)})["box_AP"] == pytest.approx(100 * 70 / 101)  # 100 / 144 = 0.694


def random_case(tmp_path, images=6):
    """Objects, and detections near them with equal scores among them."""
    generator = np.random.default_rng(1)
    annotations, predictions = [], {}
    for image in range(1, images + 1):
        starts = generator.integers(0, 60, (6, 2))
        sides = generator.integers(8, 80, (6, 2))
        boxes = np.concatenate((starts, starts + sides), 1).tolist()
        labels = generator.integers(0, 2, 6).tolist()
        annotations += [
            thing(box, image, (3, 90)[label], iscrowd=int(generator.random() < 0.1))
            for box, label in zip(boxes, labels, strict=True)
        ]
        moved = [shifted(box, *generator.integers(0, 6, 2).tolist()) for box in boxes + boxes[:2]]
        scores = generator.integers(1, 5, 8) / 5
        predictions[image] = found(moved, scores.tolist(), labels + labels[:2])
    return write(tmp_path, annotations, images), predictions


def test_order_and_processes_do_not_matter(tmp_path):
    file, predictions = random_case(tmp_path)
    expected = measure(file, predictions, images=predictions)
    assert 5 < expected["box_AP"] < 95
    order = list(predictions)
    for _ in range(4):
        random.Random(0).shuffle(order)
        assert measure(file, {image: predictions[image] for image in order}, images=order) == expected
    shares = [order[0::3], order[1::3], [*order[2::3], order[0]]]  # the first image is there twice, as padding
    parts = []
    for share in shares:
        metrics = CocoMetrics(file, [3, 90], order, masks=True)
        for image in share:
            metrics.update(image, predictions[image])
        parts.append(json.loads(json.dumps(metrics.results)))
    for first in range(3):
        metrics = CocoMetrics(file, [3, 90], order, masks=True)
        metrics.results += parts[first]
        metrics.merge(parts)
        assert metrics.compute() == expected


def test_computing_is_silent_and_changes_nothing(tmp_path, capfd, recwarn):
    file, predictions = random_case(tmp_path)
    metrics = CocoMetrics(file, [3, 90], list(predictions), masks=True)
    for image, prediction in predictions.items():
        metrics.update(image, prediction)
    before = json.dumps(metrics.results)
    first = metrics.compute()
    assert metrics.compute() == first
    assert json.dumps(metrics.results) == before
    metrics.update(1, found([[0, 0, 5, 5]]))
    assert metrics.compute() != first
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_results_are_cocos(tmp_path):
    prediction = found([[10.25, 4, 30, 12.5], [1, 2, 3, 4]], [0.25, 0.5], labels=[1, 0], masks=[pixels(SQUARE)] * 2)
    shape = {"segmentation": run_lengths(pixels(SQUARE))}
    assert coco_results(17, prediction, [3, 90]) == [
        {"image_id": 17, "category_id": 90, "bbox": [10.25, 4, 19.75, 8.5], "score": 0.25, **shape},
        {"image_id": 17, "category_id": 3, "bbox": [1, 2, 2, 2], "score": 0.5, **shape},
    ]
    del prediction["masks"]
    assert "segmentation" not in coco_results(17, prediction, [3, 90])[0]
    assert coco_results(17, found([]), [3, 90]) == []


def test_masks_are_encoded_as_they_lie():
    generator = np.random.default_rng(0)
    shapes = (generator.random((3, HEIGHT, WIDTH)) < 0.5).astype(np.uint8)
    prediction = found([SQUARE] * 3, masks=list(shapes))
    prediction["masks"] = prediction["masks"].transpose(1, 2).contiguous().transpose(1, 2)
    for result, shape in zip(coco_results(1, prediction, [3]), shapes, strict=True):
        assert np.array_equal(mask_api.decode(result["segmentation"]), shape)


def test_detections_that_are_not_finite_are_left_out():
    nan, inf = float("nan"), float("inf")
    prediction = found([SQUARE] * 4, [0.1, nan, 0.3, 0.4], masks=[pixels([0, 0, i, i]) for i in range(1, 5)])
    prediction["boxes"][0, 1] = nan
    prediction["boxes"][2, 3] = inf
    (result,) = coco_results(1, prediction, [3])
    assert result["score"] == pytest.approx(0.4)
    assert mask_api.area(result["segmentation"]) == 16


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_without_a_category_are_refused(label):
    with pytest.raises(ValueError, match="labels from .* but 2 category ids"):
        coco_results(1, found([SQUARE], labels=[label]), [3, 90])


def test_every_kind_of_segmentation_is_evaluated(tmp_path):
    flat = pixels(SQUARE).flatten(order="F")
    ends = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    runs = {"size": [HEIGHT, WIDTH], "counts": np.diff(ends).tolist()}
    x1, y1, x2, y2 = SQUARE
    for shape in ([[x1, y1, x2, y1, x2, y2, x1, y2]], runs, run_lengths(pixels(SQUARE))):
        same(measure(write(tmp_path, [thing(SQUARE, segmentation=shape)]), {1: found([SQUARE])}), {"": 100, "s": 100})


def test_ground_truth_of_boxes_alone(tmp_path):
    """Without segmentation, area and iscrowd."""
    bare = {"image_id": 1, "category_id": 3, "bbox": [30, 20, 20, 20]}
    values = measure(write(tmp_path, [bare]), {1: found([SQUARE])}, masks=False)
    assert values == pytest.approx(
        {name: math.nan if name[-1] in "ml" else 100 for name in NAMES[:6]}, nan_ok=True
    )  # fmt: skip
    file = write(tmp_path, [thing(SQUARE)])
    content = json.loads(file.read_text())
    del content["annotations"][0]["area"]
    file.write_text(json.dumps(content))
    assert measure(file, {1: found([SQUARE])})["mask_APs"] == 100


def test_damaged_annotations_are_left_out(tmp_path):
    whole = thing(SQUARE)
    damaged = [
        thing(SQUARE, image=9), thing(SQUARE, image=None), thing(SQUARE, category=4), thing(SQUARE, category=[3]),
        thing(SQUARE, bbox=None), thing(SQUARE, bbox=[1, 2, 3]), thing(SQUARE, bbox=[1, 2, 3, float("nan")]),
        thing(SQUARE, id=0), thing(SQUARE, segmentation=None), thing(SQUARE, segmentation=[[1, 1, 5, 5]]),
        thing(SQUARE, segmentation={"size": [HEIGHT, WIDTH], "counts": "05"}),  # evaluated for ever
    ]  # fmt: skip
    same(measure(write(tmp_path, [whole, *damaged]), {1: found([SQUARE])}), {"": 100, "s": 100, "m": math.nan})


def test_polygons_need_the_size_of_their_image(tmp_path):
    polygon = [[30, 20, 50, 20, 50, 40, 30, 40]]
    for shape in (polygon, run_lengths(pixels(SQUARE))):
        file = write(tmp_path, [thing(SQUARE, segmentation=shape)])
        content = json.loads(file.read_text())
        del content["images"][0]["height"]
        file.write_text(json.dumps(content))
        if shape is polygon:
            with pytest.raises(DataError, match="image 1 of the ground truth has no height and width"):
                CocoMetrics(file, [3, 90], [1], masks=True)
        else:
            same(measure(file, {1: found([SQUARE])}), {"": 100})


def test_classes_that_the_file_lacks(tmp_path):
    """A model may know more classes than the file, which then do not count."""
    metrics = CocoMetrics(write(tmp_path, [thing(SQUARE)]), [91, 3], [1], masks=False)
    metrics.update(1, found([SQUARE, SQUARE], [0.9, 0.5], labels=[0, 1]))
    assert metrics.compute()["box_AP"] == 100


def test_says_so_before_a_training_if_the_evaluator_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ModuleNotFoundError, match="faster_coco_eval"):
        CocoMetrics(write(tmp_path, [thing(SQUARE)]), [3, 90], [1], masks=False)


def test_ground_truth_of_real_sets_is_perfect(shared_data):
    for name, count, most in (("bccd", 87, 100), ("nuclei", 6, 1000)):
        masks = name == "nuclei"
        images = open_coco(str(shared_data / name), "val", masks=masks)
        ids = images.image_ids[:count]
        metrics = CocoMetrics(images.ground_truth, images.category_ids, ids, masks, most)
        for place, number in enumerate(ids):
            target = images[place][1]
            assert target["image_id"] == number
            metrics.update(number, {**target, "scores": torch.ones(len(target["labels"]))})
        values = metrics.compute()
        assert values["box_AP"] == values["box_AP75"] == values["box_APs"] == 100
        assert not masks or values["mask_AP"] == 100


def test_predictions_in_torchvisions_convention():
    masks = torch.zeros(2, 1, 4, 5)
    masks[0, 0, 1:3, 2] = 0.7
    found = {"boxes": torch.zeros(2, 4), "labels": torch.tensor([1, 3]), "scores": torch.ones(2), "masks": masks}
    converted = from_torchvision(found)
    assert converted["labels"].tolist() == [0, 2]
    assert converted["masks"].dtype == torch.bool
    assert converted["masks"].shape == (2, 4, 5)
    assert converted["masks"].sum(dim=(1, 2)).tolist() == [2, 0]
    assert "masks" not in from_torchvision({"labels": torch.tensor([1])})
    with pytest.raises(UserError, match="count from 1, got 0"):
        from_torchvision({"labels": torch.tensor([0])})
