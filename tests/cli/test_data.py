"""``deformvit data check`` as users call it: what it prints of good and broken data sets, and its picture."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from deformvit_command import main


@pytest.fixture
def check(tmp_path, capsys):
    """Run the command; returns its status and output."""

    def call(root, *options):
        output = tmp_path / "sheet.png"
        status = 0
        try:
            main(["data", "check", str(root), "--output", str(output), *map(str, options)])
        except SystemExit as end:
            status = end.code
        printed = capsys.readouterr()
        return status, " ".join((printed.out + printed.err).split()), output

    return call


@pytest.fixture
def boxes(tmp_path):
    """Two training images with boxes of the first of two classes, and a validation image without any."""
    root = tmp_path / "boxes"
    for split, count in (("train", 2), ("val", 1)):
        (root / split).mkdir(parents=True)
        images = [{"id": i, "file_name": f"{i}.png", "width": 60, "height": 40 + i} for i in range(count)]
        for i in range(count):
            Image.new("RGB", (60, 40 + i)).save(root / split / f"{i}.png")
        objects = [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [5, 5, 20, 20]}] if split == "train" else []
        categories = [{"id": 1, "name": "cell"}, {"id": 2, "name": "dust"}]
        (root / f"{split}.json").write_text(
            json.dumps({"images": images, "annotations": objects, "categories": categories})
        )
    return root


def test_boxes(check, boxes):
    status, text, sheet = check(boxes)
    assert status == 0
    assert f"{boxes}: boxes or masks in COCO's format" in text
    assert "images 2 sizes 60 x 40 to 60 x 41, median 60 x 41 objects 1, 0 to 1 in an image, median 0.5" in text
    assert "sides 20 to 20 pixels, median 20" in text
    assert "2 classes, objects of each cell 1 dust 0" in text
    assert "look at this train.json: 1 of 2 images has no object and is background only (1.png)" in text
    assert "val.json: none of its 1 images has an object" in text
    with Image.open(sheet) as picture:
        assert picture.width > 300
    assert f"{sheet}: 3 examples" in text


def test_what_is_broken_is_named_and_the_status_says_so(check, boxes):
    (boxes / "train" / "1.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0")
    content = json.loads((boxes / "train.json").read_text())
    content["annotations"].append({"id": 2, "image_id": 0, "category_id": 9, "bbox": [5, 5, 20, 20]})
    (boxes / "train.json").write_text(json.dumps(content))
    status, text, _ = check(boxes)
    assert status == 1
    assert f"{boxes / 'train' / '1.png'}: not a readable image (expected JPEG" in text
    assert "1 annotation of an unknown category was left out (annotation id 2)" in text


def test_label_maps(check, tmp_path):
    root = tmp_path / "maps"
    for split in ("training", "validation"):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        labels = np.zeros((30, 40), np.uint8)
        labels[:, 30:] = 255 if split == "training" else 1
        Image.fromarray(labels).save(root / "annotations" / split / "a.png")
        Image.new("RGB", (40, 30)).save(root / "images" / split / "a.jpg")
    (root / "classes.txt").write_text("ground\ncell\n")
    status, text, sheet = check(root)
    assert status == 0
    assert "train images 1 sizes 40 x 30 2 classes, pixels of each ground 100.00 % cell 0.00 %" in text
    assert "all labels are 0 or 255 in the 1 annotations looked at" in text
    assert "ground 75.00 % cell 25.00 %" in text
    assert sheet.is_file()
    Image.new("RGB", (41, 30)).save(root / "images" / "training" / "a.jpg")
    status, text, _ = check(root)
    assert status == 1
    assert "a.jpg is 41 x 30, but its annotation 40 x 30" in text
    Image.fromarray(labels + 6).save(root / "annotations" / "validation" / "a.png")
    assert "label 6, expected 0 to 1, or 255 for none" in check(root)[1]


def test_classes(check, tmp_path):
    root = tmp_path / "photos"
    for name, count in (("cat", 3), ("dog", 1)):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (20 + i, 30)).save(root / name / f"{i}.png")
    status, text, sheet = check(root)
    assert status == 0
    assert "train images 3 sizes 20 x 30" in text
    assert "2 classes, images of each cat 2 dog 1" in text
    assert "val images 1" in text  # as training holds it out
    assert "1 of 4 images are held out for validation, as it has no validation split (holdout 0.1, seed 0)" in text
    assert sheet.is_file()
    (root / "dog" / "0.png").write_bytes(b"")
    status, text, _ = check(root, "--limit", 2, "--examples", 0)
    assert "images 3, of which 2 were looked at" in text
    status, text, sheet = check(root, "--examples", 1)
    assert status == 1
    assert "cat 2 dog 0 broken" in text


def test_the_packaged_sample(check):
    pytest.importorskip("pyarrow")
    status, text, _ = check("sample", "--limit", 20)
    assert status == 0
    assert "images 6,000, of which 20 were looked at" in text


def test_what_cannot_be_checked(check, tmp_path):
    for folder in ("images/train", "labels/train"):
        (tmp_path / "yolo" / folder).mkdir(parents=True)
    status, text, _ = check(tmp_path / "yolo")
    assert status == 1
    assert "this is YOLO's layout" in text
    assert "deformvit data convert" in text
    status, text, _ = check(tmp_path / "missing")
    assert status == 1
    assert "no such file or folder" in text
    assert check("sample", "--limit", -1)[1] == "deformvit: examples and limit must not be negative, got 6 and -1"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["convert", "a"], "deformvit: expected deformvit data convert ROOT OUT"),
        (["check", "a", "b"], "deformvit: expected deformvit data check ROOT"),
    ],
)
def test_actions(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["data", *words])
    assert end.value.code == 1
    assert capsys.readouterr().err.strip() == message


def test_convert(tmp_path, capsys):
    pytest.importorskip("supervision")
    root = tmp_path / "yolo"
    for split in ("train", "valid"):
        (root / split / "images").mkdir(parents=True)
        (root / split / "labels").mkdir()
        Image.new("RGB", (20, 10)).save(root / split / "images" / "a.png")
        (root / split / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.5")
    (root / "data.yaml").write_text("names: [cell]")
    main(["data", "convert", str(root), str(tmp_path / "out")])
    assert "1 images, 1 objects" in capsys.readouterr().out
    main(["data", "check", str(tmp_path / "out"), "--output", str(tmp_path / "out.png")])
    assert "cell" in capsys.readouterr().out
    shutil.rmtree(root)
    assert (tmp_path / "out" / "train" / "a.png").is_file()
