"""YOLO's and Pascal VOC's layouts: recognised, named in errors, and written in COCO's format."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from deformvit.data import DataError
from deformvit.data.detection import open_coco
from deformvit.data.layouts import recognise
from deformvit.data.segmentation import open_segmentation

pytest.importorskip("supervision")
conversion = pytest.importorskip("deformvit.data.conversion")

WIDTH, HEIGHT = 40, 20


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (90, 20, 30)).save(path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def voc_object(name, *corners):
    places = "".join(f"<{tag}>{v}</{tag}>" for tag, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    return f"<object><name>{name}</name><bndbox>{places}</bndbox></object>"


@pytest.fixture
def yolo(tmp_path):
    """Ultralytics' layout: a box of the second class, a polygon in another image, and an image without labels."""
    root = tmp_path / "yolo"
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        image(root / "images" / split / f"{name}.jpg")
    write(root / "labels" / "train" / "a.txt", "1 0.5 0.5 0.25 0.5\n")
    write(root / "labels" / "train" / "b.txt", "0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n")
    write(root / "data.yaml", "names: {0: cat, 1: dog}\npath: ../elsewhere\n")
    (root / "labels" / "val").mkdir()
    return root


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOC2012"
    for name in ("a", "b", "c"):
        image(root / "JPEGImages" / f"{name}.jpg")
    write(root / "Annotations" / "a.xml", f"<annotation>{voc_object('dog', 11, 6, 20, 15)}</annotation>")
    write(root / "Annotations" / "b.xml", f"<annotation>{voc_object('cat', 1, 1, 40, 20)}</annotation>")
    write(root / "ImageSets" / "Main" / "val.txt", "b\n")
    return root


def test_layouts_are_recognised(yolo, voc, shapes, tmp_path):
    assert recognise(yolo) == "yolo"
    assert recognise(voc) == recognise(tmp_path) == "voc"
    assert recognise(shapes) == "coco"
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    assert recognise(tmp_path / "photos") == "classification"
    assert recognise(tmp_path / "missing") == "classification"


@pytest.fixture
def shapes(tmp_path):
    root = tmp_path / "coco"
    write(root / "train.json", "{}")
    return root


def test_errors_name_the_layout_and_the_command(yolo, voc):
    with pytest.raises(
        DataError, match=r"this is YOLO's layout .*: `deformvit data convert .*yolo OUT` writes it in COC"
    ):
        open_coco(str(yolo), "train")
    with pytest.raises(DataError, match=r"this is Pascal VOC's layout .*: `deformvit data convert"):
        open_segmentation(str(voc), "train")


def test_yolo(yolo, tmp_path):
    done = conversion.convert(yolo, tmp_path / "out")
    assert (done.images, done.objects) == ({"train": 2, "val": 1}, {"train": 2, "val": 0})
    assert (done.left_out, done.held_out) == ([], False)
    data = open_coco(str(tmp_path / "out"), "train", masks=False)
    assert data.classes == ["cat", "dog"]
    boxes = [(target["boxes"].tolist(), target["labels"].tolist()) for _, target in data]
    assert boxes == [([[15.0, 5.0, 25.0, 15.0]], [1]), ([[10.0, 5.0, 30.0, 15.0]], [0])]
    content = json.loads((tmp_path / "out" / "train.json").read_text())
    assert "segmentation" not in content["annotations"][0]
    content["annotations"] = content["annotations"][1:]
    (tmp_path / "out" / "train.json").write_text(json.dumps(content))
    mask = np.asarray(open_coco(str(tmp_path / "out"), "train")[1][1]["masks"][0])
    inside = np.zeros((HEIGHT, WIDTH), np.uint8)
    inside[5:15, 10:30] = 1
    assert (mask != inside).sum() <= 10 + 20 + 1  # supervision's polygons include their right and lower border
    assert len(open_coco(str(tmp_path / "out"), "val")) == 1


def test_pascal_voc(voc, tmp_path):
    done = conversion.convert(voc.parent, tmp_path / "out")
    assert (done.images, done.held_out) == ({"train": 1, "val": 1}, False)  # c has no annotation
    train, val = (open_coco(str(tmp_path / "out"), split, masks=False) for split in ("train", "val"))
    assert train.classes == val.classes == ["dog", "cat"]
    assert train[0][1]["boxes"].tolist() == [[10.0, 5.0, 20.0, 15.0]]  # corners count from 1 and are included
    assert val[0][1]["boxes"].tolist() == [[0.0, 0.0, 40.0, 20.0]]
    assert val[0][1]["labels"].tolist() == [1]


def test_a_tenth_is_held_out_where_there_is_no_validation(voc, tmp_path):
    (voc / "ImageSets" / "Main" / "val.txt").unlink()
    done = conversion.convert(voc, tmp_path / "out")
    assert (done.images, done.held_out) == ({"train": 1, "val": 1}, True)


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><annotation>&b;</annotation>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "EntitiesForbidden"),
        ('<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation>&a;</annotation>', "EntitiesForbidden"),
        ("<annotation><object><name>dog</name></object></annotation>", "bndbox"),
        (f"<annotation>{voc_object('dog', 'nan', 1, 2, 2)}</annotation>", "nan"),
        ("<annotation", "unclosed token"),
    ],
)
def test_hostile_annotations_are_left_out_and_named(voc, tmp_path, text, message):
    (voc / "Annotations" / "a.xml").write_text(text)
    image(voc / "JPEGImages" / "d.jpg")
    write(voc / "Annotations" / "d.xml", f"<annotation>{voc_object('dog', 11, 6, 20, 15)}</annotation>")
    done = conversion.convert(voc, tmp_path / "out")
    assert done.images == {"train": 1, "val": 1}
    assert len(done.left_out) == 1
    assert done.left_out[0].startswith(f"{voc / 'Annotations' / 'a.xml'}: ")
    assert message in done.left_out[0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("7 0.5 0.5 0.2 0.2", "class 7, expected 0 to 1"),
        ("0 0.5 0.5", "expected at least 5 tokens"),
        ("0 0.5 0.5 nan 0.2", "finite"),
        ("x 0.5 0.5 0.2 0.2", "class id"),
        ("\n".join(["0 0 0 1 0 1 1"] * (2**31 // (WIDTH * HEIGHT) // 1000 + 1)), None),
    ],
)
def test_labels_that_cannot_be_read_are_named(yolo, tmp_path, monkeypatch, labels, message):
    monkeypatch.setattr(conversion, "MOST_PIXELS", 2**31 // 1000)
    (yolo / "labels" / "train" / "a.txt").write_text(labels)
    done = conversion.convert(yolo, tmp_path / "out")
    assert done.images["train"] == 1
    assert (message or "are too many") in done.left_out[0]
    assert done.left_out[0].startswith(str(yolo / "labels" / "train" / "a.txt"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a, [b]]", "expected `names`, a list of the classes"),
        ("names: {0: a, 2: b}", "expected `names`"),
        ("!!python/object/apply:os.system ['true']", "not readable as YAML"),
        ("a: &a [x, x]\nnames: [*a, *a]", "expected `names`"),
    ],
)
def test_names_that_cannot_be_read(yolo, tmp_path, text, message):
    (yolo / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        conversion.convert(yolo, tmp_path / "out")


def test_what_is_not_converted(yolo, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(DataError, match="there is something already"):
        conversion.convert(yolo, tmp_path / "full")
    with pytest.raises(DataError, match="expected YOLO's or Pascal VOC's layout"):
        conversion.convert(tmp_path / "full", tmp_path / "out")
    (yolo / "images" / "train" / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0")
    done = conversion.convert(yolo, tmp_path / "out")
    assert "a.jpg: not a readable image" in done.left_out[0]
