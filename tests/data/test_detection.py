"""Images with boxes and masks in COCO's format: what is read, what is left out, and the messages."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from deformvit.data import DataError
from deformvit.data.annotations import Unusable, read_segmentation
from deformvit.data.detection import CocoImages, collate, open_coco

mask_api = pytest.importorskip("faster_coco_eval.core.mask")

HEIGHT, WIDTH = 30, 50
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 90, "name": "toothbrush"}, {"id": 7, "name": "dog"}]
BOX = [10, 4, 20, 8]
PIXELS = np.zeros((HEIGHT, WIDTH), np.uint8)
PIXELS[4:12, 10:30] = 1
POLYGON = [[10, 4, 30, 4, 30, 12, 10, 12]]


def compressed(pixels):
    encoded = mask_api.encode(np.asfortranarray(pixels))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def uncompressed(pixels):
    flat = pixels.flatten(order="F")
    ends = [*np.flatnonzero(np.diff(flat)) + 1, flat.size]
    runs = np.diff([0, *ends]).tolist()
    return {"size": list(pixels.shape), "counts": [0, *runs] if flat[0] else runs}


def annotation(number=1, image=1, category=3, bbox=BOX, segmentation=POLYGON, **more):
    return {
        "id": number, "image_id": image, "category_id": category, "bbox": bbox, "segmentation": segmentation, **more
    }  # fmt: skip


def without(name, **given):
    return {key: value for key, value in annotation(**given).items() if key != name}


def write(root, annotations, images=1, categories=CATEGORIES, split="train", layout="{split}.json", folder="{split}"):
    """Images of 50 x 30 pixels, numbered from 1, the redder the later; ``images`` may be a list of entries."""
    file, place = root / layout.format(split=split), root / folder.format(split=split)
    file.parent.mkdir(parents=True, exist_ok=True)
    place.mkdir(parents=True, exist_ok=True)
    if isinstance(images, int):
        images = [
            {"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(1, images + 1)
        ]  # fmt: skip
        for entry in images:
            Image.new("RGB", (WIDTH, HEIGHT), (entry["id"], 0, 0)).save(place / entry["file_name"])
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return str(root)


def test_boxes_labels_and_ids(tmp_path):
    """The corners of boxes, contiguous labels in the order of ids with gaps, and images without objects."""
    boxes = [
        annotation(1, 2, 90), annotation(2, 2, 3, [-5, 20, 10.5, 100]), annotation(3, 1, 7, [45, 1, 20, 2.25])
    ]  # fmt: skip
    data = open_coco(write(tmp_path, boxes, images=3), "train", masks=False)
    assert (len(data), data.classes, data.category_ids) == (3, ["cat", "dog", "toothbrush"], [3, 7, 90])
    assert data.image_ids == [1, 2, 3]
    assert data.ground_truth == tmp_path / "train.json"
    assert (data.image_path(1), data.size(1)) == (tmp_path / "train" / "2.png", (HEIGHT, WIDTH))
    image, target = data[1]
    assert type(image) is tv_tensors.Image
    assert (image.dtype, tuple(image.shape), image[0, 0, 0].item()) == (torch.uint8, (3, HEIGHT, WIDTH), 2)
    assert type(target["boxes"]) is tv_tensors.BoundingBoxes
    assert target["boxes"].dtype == torch.float32
    assert target["boxes"].canvas_size == (HEIGHT, WIDTH)
    assert target["boxes"].format == tv_tensors.BoundingBoxFormat.XYXY
    assert target["boxes"].tolist() == [[10, 4, 30, 12], [0, 20, 5.5, 30]]  # the second is clipped
    assert (target["labels"].dtype, target["labels"].tolist()) == (torch.int64, [2, 0])
    assert (target["image_id"].dtype, target["image_id"].item()) == (torch.int64, 2)
    assert "masks" not in target
    assert data[0][1]["boxes"].tolist() == [[45, 1, 50, 3.25]]
    assert data[2][1]["boxes"].shape == (0, 4)
    assert data[2][1]["labels"].shape == (0,)
    assert (data.problems, data.dropped) == ([], {})


@pytest.mark.parametrize(
    "segmentation", [POLYGON, compressed(PIXELS), uncompressed(PIXELS)], ids=["polygon", "string", "list"]
)
def test_masks(tmp_path, segmentation):
    data = open_coco(write(tmp_path, [annotation(segmentation=segmentation)], images=2), "train")
    masks = data[0][1]["masks"]
    assert type(masks) is tv_tensors.Mask
    assert masks.dtype == torch.uint8
    assert torch.equal(masks.as_subclass(torch.Tensor), torch.from_numpy(PIXELS)[None])
    empty = data[1][1]
    assert (empty["masks"].shape, empty["masks"].dtype) == ((0, HEIGHT, WIDTH), torch.uint8)


def test_polygons_of_several_parts(tmp_path):
    parts = [[0, 0, 5, 0, 5, 5, 0, 5], [1, 2, 3, 4], [40, 20, 50, 20, 50, 30, 40, 30]]
    target = open_coco(write(tmp_path, [annotation(segmentation=parts)]), "train")[0][1]
    expected = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    expected[:5, :5] = expected[20:, 40:] = 1  # the part of two points encloses nothing
    assert torch.equal(target["masks"][0].as_subclass(torch.Tensor), expected)


def test_masks_stay_with_their_objects(tmp_path):
    """An object is left out with its mask, and the others keep theirs."""
    low, high = np.zeros_like(PIXELS), np.zeros_like(PIXELS)
    low[20:], high[:3] = 1, 1
    data = open_coco(
        write(
            tmp_path,
            [
                annotation(1, category=3, segmentation=compressed(low)),
                annotation(2, category=7, segmentation=[[60, 4, 70, 4, 70, 9]]),  # beside the image
                annotation(3, category=90, bbox=[0, 0, 50, 3], segmentation=uncompressed(high)),
            ],
        ),
        "train",
    )
    target = data[0][1]
    assert target["labels"].tolist() == [0, 2]
    assert target["boxes"].tolist() == [[10, 4, 30, 12], [0, 0, 50, 3]]
    assert target["masks"].flatten(1).sum(1).tolist() == [10 * WIDTH, 3 * WIDTH]
    assert target["masks"][0, 20, 0] == target["masks"][1, 0, 0] == 1
    assert data.problems == []
    assert data.dropped == {"objects without a usable mask": 1}


def test_crowds_are_left_out_without_a_message(tmp_path):
    crowd = annotation(2, iscrowd=1, segmentation=uncompressed(PIXELS))
    data = open_coco(write(tmp_path, [annotation(1, iscrowd=0), crowd]), "train")
    assert len(data[0][1]["labels"]) == 1
    assert data.problems == []


LARGER = {"size": [WIDTH, HEIGHT], "counts": [0, HEIGHT * WIDTH]}
EMPTY = compressed(np.zeros_like(PIXELS))
UNFINISHED = compressed(PIXELS)
UNFINISHED["counts"] += "S"
UNUSABLE = {
    "no area": (annotation(bbox=[1, 1, 0, 5]), "with a box without area"),
    "negative": (annotation(bbox=[1, 1, 5, -5]), "with a box without area"),
    "nan": (annotation(bbox=[1, float("nan"), 5, 5]), "with a box that is not four finite numbers"),
    "infinite": (annotation(bbox=[1, 1, float("inf"), 5]), "with a box that is not four finite numbers"),
    "three": (annotation(bbox=[1, 1, 5]), "with a box that is not four finite numbers"),
    "text": (annotation(bbox=[1, 1, 5, "5"]), "with a box that is not four finite numbers"),
    "object": (annotation(bbox={"x": 1}), "with a box that is not four finite numbers"),
    "no box": (without("bbox"), "without a box"),
    "right": (annotation(bbox=[WIDTH, 1, 5, 5]), "with a box outside the image"),
    "below": (annotation(bbox=[1, HEIGHT + 1, 5, 5]), "with a box outside the image"),
    "left": (annotation(bbox=[-5, 1, 5, 5]), "with a box outside the image"),
    "above": (annotation(bbox=[1, -6, 5, 5]), "with a box outside the image"),
    "image": (annotation(image=77), "of an unknown image"),
    "image type": (annotation(image=[1]), "of an unknown image"),
    "no image": (without("image_id"), "of an unknown image"),
    "category": (annotation(category=4), "of an unknown category"),
    "no category": (without("category_id"), "of an unknown category"),
    "twice": (annotation(number=100), "with the id of an earlier one"),
    "no mask": (annotation(segmentation=[]), "with an empty segmentation"),
    "empty string": (annotation(segmentation=EMPTY), "with an empty mask"),
    "empty list": (annotation(segmentation=uncompressed(PIXELS * 0)), "with an empty mask"),
    "other size": (annotation(segmentation=LARGER), "with a mask of another size than the image"),
    "flat": (annotation(segmentation=POLYGON[0]), "with a malformed mask"),
    "odd": (annotation(segmentation=[[1, 1, 5, 1, 5, 5, 1]]), "with a malformed mask"),
    "line": (annotation(segmentation=[[1, 1, 5, 5]]), "with a malformed mask"),
    "words": (annotation(segmentation=[["a"] * 6]), "with a malformed mask"),
    "nan polygon": (annotation(segmentation=[[1, 1, 5, 1, 5, float("nan")]]), "with a malformed mask"),
    "far": (annotation(segmentation=[[1, 1, 1e12, 1, 5, 5]]), "with a malformed mask"),
    "word": (annotation(segmentation="mask"), "with a malformed mask"),
    "number": (annotation(segmentation=5), "with a malformed mask"),
    "no counts": (annotation(segmentation={"size": [HEIGHT, WIDTH]}), "with a malformed mask"),
    "no size": (annotation(segmentation={"counts": "00"}), "with a malformed mask"),
    "short": (annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": [5, 5]}), "with a malformed mask"),
    "below 0": (annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": [-5, 1505]}), "with a malformed mask"),
    "halves": (annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": [0.5, 1499.5]}), "with a malformed mask"),
    # faster_coco_eval never returns from comparing the first of these two, and refuses the second.
    "short string": (annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": "05"}), "with a malformed mask"),
    "cut string": (annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": "0S"}), "with a malformed mask"),
    "unfinished": (annotation(segmentation=UNFINISHED), "with a malformed mask"),
    "characters": (annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": "é\x01"}), "with a malformed mask"),
    "long string": (annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": 20 * "o"}), "with a malformed mask"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_annotations_are_left_out_and_counted(tmp_path, case):
    damaged, reason = UNUSABLE[case]
    root = write(tmp_path, [annotation(100), damaged])
    data = open_coco(root, "train")
    assert len(data[0][1]["labels"]) == 1
    assert data.problems == [f"train.json: 1 annotation {reason} was left out (annotation id {damaged['id']})"]
    assert data.dropped == {}
    if "mask" in reason or "segmentation" in reason:
        assert open_coco(root, "train", masks=False).problems == []


def test_problems_count_and_name_annotations(tmp_path):
    flat = [annotation(i, bbox=[1, 1, 0, 5]) for i in (4, 9)]
    root = write(tmp_path, [annotation(1), *flat, annotation(20, image=5)])
    assert open_coco(root, "train").problems == [
        "train.json: 2 annotations with a box without area were left out (annotation ids 4, 9)",
        "train.json: 1 annotation of an unknown image was left out (annotation id 20)",
    ]
    flat += [annotation(i, bbox=[1, 1, 0, 5]) for i in (17, 18)]
    assert open_coco(write(tmp_path, [annotation(1), *flat]), "train").problems == [
        "train.json: 4 annotations with a box without area were left out (annotation ids 4, 9, 17, ...)"
    ]


def test_annotations_may_lack_ids(tmp_path):
    data = open_coco(write(tmp_path, [without("id"), without("id"), without("id", bbox=[0, 0, 0, 0])]), "train")
    assert len(data[0][1]["labels"]) == 2
    assert data.problems == ["train.json: 1 annotation with a box without area was left out (annotation id none)"]


def test_strings_of_run_lengths_are_read_as_they_are_written():
    generator = np.random.default_rng(0)
    for density in (0.001, 0.02, 0.5, 0.999):
        pixels = (generator.random((61, 83)) < density).astype(np.uint8)
        pixels[0, 0] = 1
        assert read_segmentation(compressed(pixels)) == compressed(pixels)
        for change in (-1, 1):  # as many pixels, but not those of the image
            wrong = compressed(pixels) | {"size": [61, 83 + change]}
            with pytest.raises(Unusable, match="malformed"):
                read_segmentation(wrong)


def test_the_file_is_right_about_the_size(tmp_path):
    """Where the JSON has another size, or none, boxes and masks are those of the image."""
    entries = [
        {"id": 1, "file_name": "1.png", "width": 20, "height": 10},
        {"id": 2, "file_name": "2.png"},
        {"id": 3, "file_name": "3.png", "width": 200, "height": 100},
    ]
    boxes = [
        annotation(1, 1, bbox=[25, 12, 100, 5], segmentation=compressed(PIXELS)),
        annotation(2, 2, bbox=[25, 12, 100, 5]),
        annotation(3, 2, bbox=[55, 12, 100, 5]),
        annotation(4, 3, bbox=[150, 12, 10, 5]),
        annotation(5, 3, bbox=[10, 12, 10, 5]),
        annotation(6, 3, bbox=[10, 12, 10, 5], segmentation={"size": [100, 200], "counts": [0, 20000]}),
    ]
    write(tmp_path, [], images=3)
    data = open_coco(write(tmp_path, boxes, images=entries), "train")
    assert [len(data[i][1]["labels"]) for i in range(3)] == [1, 1, 1]
    assert data[0][1]["boxes"].tolist() == [[25, 12, 50, 17]]
    assert data.size(2) == (HEIGHT, WIDTH)
    assert data.problems == ["train.json: 1 annotation with a box outside the image was left out (annotation id 3)"]
    assert data.dropped == {
        "images of another size than the JSON says": 3, "objects outside the image": 1,
        "objects without a usable mask": 1,
    }  # fmt: skip


def test_transform_sees_image_and_target(tmp_path):
    root = write(tmp_path, [annotation()])
    assert open_coco(root, "train", lambda image, target: (image.shape, set(target)))[0] == (
        (3, HEIGHT, WIDTH), {"boxes", "labels", "masks", "image_id"}
    )  # fmt: skip


def test_batches_are_lists(tmp_path):
    data = open_coco(write(tmp_path, [annotation()], images=2), "train")
    images, targets = collate([data[0], data[1]])
    assert [type(images), type(targets)] == [list, list]
    assert [len(target["labels"]) for target in targets] == [1, 0]


def test_pickles_for_loader_processes(tmp_path):
    data = pickle.loads(pickle.dumps(open_coco(write(tmp_path, [annotation()]), "train")))
    assert data[0][1]["masks"].sum() == PIXELS.sum()


@pytest.mark.parametrize("year", ["2014", "2017", ""])
def test_layout_of_coco(tmp_path, year):
    for split in ("train", "val"):
        names = f"annotations/instances_{{split}}{year}.json", f"{{split}}{year}"
        write(tmp_path, [annotation()], 1 + (split == "val"), split=split, layout=names[0], folder=names[1])
    (tmp_path / "annotations" / "instances_valminusminival2014.json").write_text("{}")
    (tmp_path / "valminusminival2014").mkdir()
    (tmp_path / "annotations" / "captions_val2017.json").write_text("{}")
    assert [len(open_coco(str(tmp_path), split)) for split in ("train", "val")] == [1, 2]
    assert open_coco(str(tmp_path), "val").ground_truth.name == f"instances_val{year}.json"


def test_the_year_with_images_is_taken(tmp_path):
    layout = {"layout": "annotations/instances_train2017.json", "folder": "train2017"}
    write(tmp_path, [annotation()], 2, **layout)
    (tmp_path / "annotations" / "instances_train2014.json").write_text("{}")
    assert len(open_coco(str(tmp_path), "train")) == 2
    (tmp_path / "train2014").mkdir()
    with pytest.raises(DataError, match=r"more than one set of train images, annotations/instances_train2014\.json, "):
        open_coco(str(tmp_path), "train")


def test_missing_things_are_named(tmp_path):
    with pytest.raises(DataError, match="nowhere': no such folder"):
        open_coco(str(tmp_path / "nowhere"), "train")
    with pytest.raises(
        DataError, match=r"no val images.*looked for val\.json with val/ and for annotations/instances_val"
    ):
        open_coco(str(tmp_path), "val")
    (tmp_path / "train.json").write_text("{}")
    with pytest.raises(DataError, match=r"train\.json: there is no folder .*train with its images"):
        open_coco(str(tmp_path), "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=r"train\.json: no list of images"):
        open_coco(str(tmp_path), "train")
    (tmp_path / "train.json").write_text("{")
    with pytest.raises(DataError, match=r"train\.json: not readable as JSON"):
        open_coco(str(tmp_path), "train")


def test_missing_images_are_named_and_counted(tmp_path):
    root = write(tmp_path, [], 3)
    (tmp_path / "train" / "2.png").unlink()
    with pytest.raises(DataError, match=r"train/2\.png: no such image; 1 of 3 images"):
        open_coco(root, "train")
    images = [{"id": 1, "file_name": "deeper/1.png"}, {"id": 2, "file_name": "other/1.png"}]
    root = write(tmp_path, [], images)
    with pytest.raises(DataError, match=r"deeper/1\.png: no such image; 2 of 2 images"):
        open_coco(root, "train")
    for name in ("deeper", "other"):
        (tmp_path / "train" / name).mkdir()
        (tmp_path / "train" / name / "1.png").write_bytes((tmp_path / "train" / "1.png").read_bytes())
    assert open_coco(root, "train")[1][0].shape == (3, HEIGHT, WIDTH)


@pytest.mark.parametrize("damage", [b"no image", b""])
def test_corrupt_images_are_named(tmp_path, damage):
    """When they are read, not before; a box that would need the size of the file does not change that."""
    images = [{"id": 1, "file_name": "1.png"}]
    write(tmp_path, [annotation()])
    (tmp_path / "train" / "1.png").write_bytes(damage)
    data = open_coco(write(tmp_path, [annotation()], images), "train")
    for act in (lambda: data[0], lambda: data.size(0)):
        with pytest.raises(DataError, match=r"1\.png: not a readable image"):
            act()


@pytest.mark.parametrize(
    ("segmentation", "number"), [(None, 5), ("absent", 5), ([], 5)], ids=["null", "absent", "empty"]
)
def test_boxes_do_for_boxes_only(tmp_path, segmentation, number):
    bare = annotation(number, segmentation=segmentation)
    if segmentation == "absent":
        del bare["segmentation"]
    root = write(tmp_path, [bare])
    with pytest.raises(
        DataError, match=r"train\.json: annotation 5 has a box but no segmentation; systems that predict masks need"
    ):
        open_coco(root, "train")
    assert len(open_coco(root, "train", masks=False)[0][1]["labels"]) == 1


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            [{"id": 1, "file_name": "1.png"}, {"id": 1, "file_name": "2.png"}],
            "image id 1 belongs to 1.png and to 2.png",
        ),
        ([{"id": "1", "file_name": "1.png"}], "images need an integer id and a file_name, found {'id': '1'"),
        ([{"id": 1}], "images need an integer id and a file_name"),
        (["1.png"], "images need an integer id and a file_name, found '1.png'"),
        ([], "no list of images"),
    ],
)
def test_damaged_lists_of_images_are_refused(tmp_path, images, message):
    write(tmp_path, [], 2)
    with pytest.raises(DataError, match=message):
        open_coco(write(tmp_path, [], images), "train")


def test_images_listed_again_are_taken_once(tmp_path):
    write(tmp_path, [], 2)
    images = [{"id": 1, "file_name": "1.png"}, {"id": 1, "file_name": "1.png"}, {"id": 2, "file_name": "2.png"}]
    data = open_coco(write(tmp_path, [annotation(1, 2)], images), "train")
    assert data.image_ids == [1, 2]
    assert [len(data[i][1]["labels"]) for i in range(2)] == [0, 1]
    assert data.problems == ["train.json: 1 image is listed again"]


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([], "no list of categories"),
        ([{"id": 1}], "categories need an integer id and a name"),
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "two categories have the id 1 or the name b"),
        ([{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], "two categories have the id 2 or the name a"),
    ],
)
def test_damaged_categories_are_refused(tmp_path, categories, message):
    with pytest.raises(DataError, match=message):
        open_coco(write(tmp_path, [], categories=categories), "train")


def test_annotations_that_are_not_json_objects_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"train\.json: annotations must be JSON objects, found 'cat'"):
        open_coco(write(tmp_path, ["cat"]), "train")


def test_classes_of_a_checkpoint_go_by_name(tmp_path):
    """Labels are the checkpoint's, in its order, whatever ids the file has for them, and those it lacks stay free."""
    root = write(tmp_path, [annotation(1, category=90), annotation(2, category=3)])
    data = open_coco(root, "train", classes=["toothbrush", "bird", "dog", "cat"])
    assert data.classes == ["toothbrush", "bird", "dog", "cat"]
    assert data.category_ids == [90, 91, 7, 3]
    assert data[0][1]["labels"].tolist() == [0, 3]
    with pytest.raises(DataError, match="categories toothbrush, dog are unknown to the model, which knows cat, bird"):
        open_coco(root, "train", classes=["cat", "bird"])


def test_folder_and_file_may_be_anywhere(tmp_path):
    write(tmp_path, [annotation()])
    assert len(CocoImages(tmp_path / "train.json", tmp_path / "train")) == 1


def test_real_sets(shared_data):
    counts = {"bccd": (205, 87, 3941), "nuclei": (520, 80, 25429)}
    for name, (train, val, objects) in counts.items():
        sets = [open_coco(str(shared_data / name), split, masks=name == "nuclei") for split in ("train", "val")]
        assert [len(images) for images in sets] == [train, val]
        assert sum(len(found.labels) for images in sets for found in images._objects) == objects
        assert [images.problems for images in sets] == [[], []]
        image, target = sets[1][0]
        assert tuple(image.shape[1:]) == sets[1].size(0)
        if name == "nuclei":  # boxes are those around the masks
            for mask, box in zip(target["masks"].numpy(), target["boxes"].tolist(), strict=True):
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                assert box == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    with pytest.raises(DataError, match="has a box but no segmentation"):
        open_coco(str(shared_data / "bccd"), "val")


def test_what_is_probably_not_meant_is_counted(tmp_path):
    root = write(tmp_path, [])
    assert open_coco(root, "train", masks=False).warnings == [
        "train.json: none of its 1 images has an object; nothing can be learnt from it"
    ]


def test_images_without_objects_and_unused_classes_are_counted(shapes_with_gaps):
    assert open_coco(str(shapes_with_gaps), "train", masks=False).warnings == [
        "train.json: 2 of 3 images have no object and are background only (1.png)",
        "train.json: 1 of 2 classes occur in no annotation: green",
    ]


@pytest.fixture
def shapes_with_gaps(tmp_path):
    """Three images, the first with an object of the first of two classes."""
    (tmp_path / "train").mkdir()
    images = [{"id": i, "file_name": f"{i}.png", "width": 9, "height": 9} for i in range(3)]
    for i in range(3):
        Image.new("RGB", (9, 9)).save(tmp_path / "train" / f"{i}.png")
    content = {
        "images": images,
        "annotations": [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 1, 4, 4]}],
        "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))
    return tmp_path
