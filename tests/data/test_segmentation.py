"""Folders of images and label maps, and the messages when they do not fit together."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from deformvit.data import DataError
from deformvit.data.segmentation import SCANNED_SILENTLY, open_segmentation
from deformvit.metrics.segmentation import SegmentationMetrics

LABELS = np.array([[0, 1, 2, 255, 2], [2, 2, 1, 0, 1], [0, 0, 0, 1, 255]], dtype=np.uint8)  # 3 high, 5 wide


def write_image(root, name="a", labels=LABELS, split="training", size=None, suffix=".png"):
    """An image and its annotation, an array or a PIL image."""
    annotation = labels if isinstance(labels, Image.Image) else Image.fromarray(np.asarray(labels))
    image = Image.new("RGB", size or annotation.size, (10, 200, 30))
    image.putpixel((1, 0), (255, 0, 7))
    for kind, picture, ending in (("images", image, suffix), ("annotations", annotation, ".png")):
        folder = root / kind / split
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / (name + ending))


def write_png(path, rows, depth, colour):
    """A PNG of any depth: ``rows`` of bytes with packed pixels, 8 wide."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, len(rows), depth, colour, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def names(root, *classes):
    (root / "classes.json").write_text(json.dumps(classes))


def test_image_and_labels(tmp_path):
    names(tmp_path, "sky", "tree", "road")
    for name in ("b.x", "a"):
        write_image(tmp_path, name, suffix=".PNG")
    images = open_segmentation(str(tmp_path), "train")
    assert len(images) == 2
    assert images.classes == ["sky", "tree", "road"]
    assert images.ignore_label == 255
    assert images.image_path(1) == tmp_path / "images" / "training" / "b.x.PNG"
    image, labels = images[0]
    assert isinstance(image, tv_tensors.Image)
    assert isinstance(labels, tv_tensors.Mask)
    assert (image.shape, image.dtype, labels.dtype) == ((3, 3, 5), torch.uint8, torch.uint8)
    assert image[:, 0, 1].tolist() == [255, 0, 7]
    assert image[:, 1, 0].tolist() == [10, 200, 30]
    assert labels.tolist() == LABELS.tolist()


def test_splits_by_either_name(tmp_path):
    names(tmp_path, "a", "b", "c")
    write_image(tmp_path, split="train")
    write_image(tmp_path, "v", split="val")
    assert open_segmentation(str(tmp_path), "train").image_path(0).stem == "a"
    assert open_segmentation(str(tmp_path), "val").image_path(0).stem == "v"
    write_image(tmp_path, "w", split="validation")  # ADE20K's names come first
    assert open_segmentation(str(tmp_path), "val").image_path(0).stem == "w"


def test_transform_gets_both(tmp_path):
    write_image(tmp_path)
    images = open_segmentation(str(tmp_path), "train", lambda image, labels: (labels.shape, image.shape))
    assert images[0] == ((3, 5), (3, 3, 5))


def test_pickles_for_spawned_workers(tmp_path):
    write_image(tmp_path)
    images = pickle.loads(pickle.dumps(open_segmentation(str(tmp_path), "train", reduce_zero_label=True)))
    assert images[0][1][0].tolist() == [255, 0, 1, 255, 1]


def test_palette_indices_are_labels(tmp_path):
    names(tmp_path, "a", "b", "c")
    annotation = Image.fromarray(LABELS)
    annotation.putpalette([(37 * i) % 256 for i in range(768)])
    assert annotation.mode == "P"
    write_image(tmp_path, labels=annotation)
    few = Image.fromarray(LABELS % 3)
    few.putpalette([200, 0, 0, 0, 0, 0, 90, 1, 1])
    write_image(tmp_path, "b", labels=few)
    few.save(tmp_path / "annotations" / "training" / "b.png", bits=2)
    images = open_segmentation(str(tmp_path), "train")
    assert images[0][1].tolist() == LABELS.tolist()
    assert images[1][1].tolist() == (LABELS % 3).tolist()
    assert (tmp_path / "annotations" / "training" / "b.png").read_bytes()[24] == 2  # really two bits


def test_sixteen_bits(tmp_path):
    wide = LABELS.astype(np.uint16) * 150  # 0, 150, 300 and 38250
    write_image(tmp_path, labels=wide)
    images = open_segmentation(str(tmp_path), "train", ignore_label=38250)
    assert len(images.classes) == 301
    _, labels = images[0]
    assert labels.dtype == torch.int64
    assert labels.tolist() == wide.tolist()
    names(tmp_path, *map(str, range(301)))
    with pytest.raises(DataError, match=r"a\.png: label 38250, expected 0 to 300, or 65535 for none \(301 classes\)"):
        open_segmentation(str(tmp_path), "train", ignore_label=65535)[0]
    # Few classes in 16 bits are labels like any others.
    write_image(tmp_path, labels=LABELS.astype(np.uint16))
    names(tmp_path, "a", "b", "c")
    _, labels = open_segmentation(str(tmp_path), "train")[0]
    assert (labels.dtype, labels.tolist()) == (torch.uint8, LABELS.tolist())


def test_reduce_zero_label(tmp_path):
    write_image(tmp_path)
    for named in (False, True):
        if named:
            names(tmp_path, "tree", "road")
        images = open_segmentation(str(tmp_path), "train", reduce_zero_label=True)
        assert images.classes == (["tree", "road"] if named else ["0", "1"])
        assert images[0][1].tolist() == [[255, 0, 1, 255, 1], [1, 1, 0, 255, 0], [255, 255, 255, 0, 255]]


def test_negative_ignored_label(tmp_path):
    write_image(tmp_path, labels=LABELS % 3)
    _, labels = open_segmentation(str(tmp_path), "train", ignore_label=-1, reduce_zero_label=True)[0]
    assert (labels.dtype, labels[0].tolist()) == (torch.int64, [-1, 0, 1, -1, 1])


def test_classes_are_counted_over_both_splits(tmp_path):
    write_image(tmp_path, labels=LABELS)
    write_image(tmp_path, "b", labels=np.where(LABELS == 1, 6, LABELS), split="val")
    write_image(tmp_path, "c", labels=np.full_like(LABELS, 255))
    for split in ("train", "val"):
        assert open_segmentation(str(tmp_path), split).classes == list("0123456")
    assert open_segmentation(str(tmp_path), "train", reduce_zero_label=True).classes == list("012345")


def test_long_scans_show_a_progress_bar(tmp_path, capsys):
    write_image(tmp_path)
    annotations = tmp_path / "annotations" / "training"
    for number in range(SCANNED_SILENTLY):
        if number == SCANNED_SILENTLY - 1:
            assert open_segmentation(str(tmp_path), "train").classes == ["0", "1", "2"]
            assert capsys.readouterr().err == ""
        shutil.copy(annotations / "a.png", annotations / f"{number}.png")
        shutil.copy(tmp_path / "images" / "training" / "a.png", tmp_path / "images" / "training" / f"{number}.png")
    assert open_segmentation(str(tmp_path), "train").classes == ["0", "1", "2"]
    assert re.search(rf"count classes:.* 0/{SCANNED_SILENTLY + 1} ", capsys.readouterr().err)


def test_nothing_to_count(tmp_path):
    write_image(tmp_path, labels=np.full_like(LABELS, 255))
    with pytest.raises(DataError, match="annotations: no pixel has a class"):
        open_segmentation(str(tmp_path), "train")
    write_image(tmp_path, labels=np.zeros_like(LABELS))
    with pytest.raises(DataError, match="no pixel has a class"):
        open_segmentation(str(tmp_path), "train", reduce_zero_label=True)


def test_ade20k_names(tmp_path):
    write_image(tmp_path)
    table = tmp_path / "objectInfo150.txt"
    table.write_text("Idx\tRatio\tTrain\tVal\tName\n1\t0.2\t9\t1\twall\n2 \t0.1\t6\t6\tbuilding, edifice \n\n")
    assert open_segmentation(str(tmp_path), "train", reduce_zero_label=True).classes == ["wall", "building, edifice"]
    with pytest.raises(DataError, match=r"a\.png: label 2, expected 0 to 1, or 255 for none \(2 classes\)"):
        open_segmentation(str(tmp_path), "train")[0]  # reduce_zero_label forgotten
    names(tmp_path, "x", "y", "z")  # comes first
    assert open_segmentation(str(tmp_path), "train").classes == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Idx\tName\n1\twall\n3\tsky\n", r"expected class 2 and its name in columns, found '3\\tsky'"),
        ("Idx\tName\n1\n", "expected class 1 and its name"),
        ("Idx\tName\n1\t \n", "expected class 1 and its name"),
        ("Idx\tName\n", "no classes below the header"),
        ("Idx\tName\n1\twall\n2\twall\n", "two classes are called 'wall'"),
    ],
)
def test_wrong_ade20k_names(tmp_path, text, message):
    write_image(tmp_path)
    (tmp_path / "objectInfo150.txt").write_text(text)
    with pytest.raises(DataError, match=r"objectInfo150\.txt: " + message):
        open_segmentation(str(tmp_path), "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not readable as JSON"),
        ("[]", "expected a list of names"),
        ('{"a": 1}', "expected a list of names"),
        ('["a", 2]', "expected a list of names"),
        ('["a", "b", "a"]', "two classes are called 'a'"),
    ],
)
def test_wrong_names(tmp_path, text, message):
    write_image(tmp_path)
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(DataError, match=r"classes\.json: " + message):
        open_segmentation(str(tmp_path), "train")


def test_names_on_lines(tmp_path):
    write_image(tmp_path)
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeffsky\r\nold tree \r\nStraße\r\n\r\n".encode())  # as an editor on Windows writes it
    for split in ("train", "val"):
        write_image(tmp_path, split={"train": "training", "val": "validation"}[split])
        images = open_segmentation(str(tmp_path), split)
        assert images.classes == ["sky", "old tree", "Straße"]
        assert images[0][1].tolist() == LABELS.tolist()
    (tmp_path / "objectInfo150.txt").write_text("Idx\tName\n1\twall\n")  # comes after it
    assert open_segmentation(str(tmp_path), "train").classes == ["sky", "old tree", "Straße"]
    names(tmp_path, "x", "y", "z")  # comes first
    assert open_segmentation(str(tmp_path), "train").classes == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a name on each line, but line 1 is empty"),
        ("\n\n", "expected a name on each line, but line 1 is empty"),
        ("a\n\nb\n", "expected a name on each line, but line 2 is empty"),
        ("a\nb\na\n", "two classes are called 'a'"),
    ],
)
def test_wrong_names_on_lines(tmp_path, text, message):
    write_image(tmp_path)
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=r"classes\.txt: " + message):
        open_segmentation(str(tmp_path), "train")


def test_names_that_are_not_text(tmp_path):
    write_image(tmp_path)
    for name, kind in (("objectInfo150.txt", "text"), ("classes.txt", "text"), ("classes.json", "JSON")):
        (tmp_path / name).write_bytes(b"\xff\xfe\xff")
        with pytest.raises(DataError, match=f"{name}: not readable as {kind}"):
            open_segmentation(str(tmp_path), "train")


def test_classes_of_a_model(tmp_path):
    write_image(tmp_path)
    # A folder without names has the model's; labels are checked against them when they are read.
    assert open_segmentation(str(tmp_path), "train", classes=["a", "b", "c", "d"]).classes == ["a", "b", "c", "d"]
    with pytest.raises(DataError, match="label 2, expected 0 to 1"):
        open_segmentation(str(tmp_path), "train", classes=["a", "b"])[0]
    names(tmp_path, "a", "b", "c")
    assert open_segmentation(str(tmp_path), "train", classes=["a", "b", "c"]).classes == ["a", "b", "c"]
    for classes, message in (
        (["a", "b"], "3 classes, but the model knows 2; the model does not know c$"),
        (["a", "b", "d"], r"classes\.json: the model does not know c; missing are d$"),
        (["a", "c", "b"], "another order of classes: number 1 is 'b', for the model 'c'"),
        (list("abcdefghij"), "the model knows 10; missing are d, e, f, g, h and 2 more$"),
    ):
        with pytest.raises(DataError, match=message):
            open_segmentation(str(tmp_path), "train", classes=classes)


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(DataError, match="nowhere': no such folder"):
        open_segmentation(str(tmp_path / "nowhere"), "train")
    with pytest.raises(DataError, match="no images of the train split; looked for .*images/training and .*/train$"):
        open_segmentation(str(tmp_path), "train")
    (tmp_path / "images" / "val").mkdir(parents=True)
    with pytest.raises(DataError, match="no annotations of the val split; looked for .*annotations/validation and"):
        open_segmentation(str(tmp_path), "val")
    (tmp_path / "annotations" / "val").mkdir(parents=True)
    (tmp_path / "annotations" / "val" / ".hidden.png").touch()
    (tmp_path / "images" / "val" / "readme.txt").touch()
    with pytest.raises(DataError, match="the val split is empty"):
        open_segmentation(str(tmp_path), "val")


def test_images_and_annotations_without_partner(tmp_path):
    names(tmp_path, "a", "b", "c")
    for name in "abcd":
        write_image(tmp_path, name)
    annotations = tmp_path / "annotations" / "training"
    (annotations / "b.png").rename(annotations / "b.jpg")  # only PNG files are annotations
    (annotations / "c.png").unlink()
    with pytest.raises(DataError, match=r"images/training/b\.png: no annotation in .*training; 2 of 4 images have"):
        open_segmentation(str(tmp_path), "train")
    for name in "abc":
        (tmp_path / "images" / "training" / f"{name}.png").unlink()
    with pytest.raises(DataError, match=r"annotations/training/a\.png: no image in .*; 1 of 2 annotations have none"):
        open_segmentation(str(tmp_path), "train")


def test_two_images_of_one_name(tmp_path):
    write_image(tmp_path)
    write_image(tmp_path, suffix=".jpg")
    with pytest.raises(DataError, match=r"a\.png: of the same name as a\.jpg"):
        open_segmentation(str(tmp_path), "train")


def test_sizes_that_differ(tmp_path):
    names(tmp_path, "a", "b", "c")
    write_image(tmp_path, size=(3, 5))
    with pytest.raises(DataError, match=r"images/training/a.png is 3 x 5, .*annotations/training/a.png 5 x 3$"):
        open_segmentation(str(tmp_path), "train")[0]


def test_labels_outside_the_classes(tmp_path):
    names(tmp_path, "a", "b")
    write_image(tmp_path)
    with pytest.raises(DataError, match=r"annotations/training/a\.png: label 2, expected 0 to 1, or 255 for none"):
        open_segmentation(str(tmp_path), "train")[0]
    with pytest.raises(DataError, match="label 255, expected 0 to 2, or 254 for none"):
        open_segmentation(str(tmp_path), "train", ignore_label=254, reduce_zero_label=True)[0]


def test_ignored_labels_that_are_classes(tmp_path):
    names(tmp_path, "a", "b", "c")
    write_image(tmp_path)
    for ignored, reduced in ((2, False), (3, True), (0, True)):
        with pytest.raises(DataError, match=f"ignore_label {ignored} is one of the 3 classes"):
            open_segmentation(str(tmp_path), "train", ignore_label=ignored, reduce_zero_label=reduced)
    images = open_segmentation(str(tmp_path), "train", ignore_label=3)
    with pytest.raises(DataError, match="label 255, expected 0 to 2, or 3 for none"):
        images[0]


@pytest.mark.parametrize(
    ("mode", "found"),
    [("RGB", "8-bit RGB"), ("RGBA", "8-bit RGBA"), ("LA", "8-bit grayscale with alpha"), ("1", "1-bit grayscale")],
)
def test_annotations_of_other_kinds(tmp_path, mode, found):
    names(tmp_path, "a", "b", "c")
    write_image(tmp_path, labels=Image.new(mode, (5, 3)))
    with pytest.raises(DataError, match=rf"a\.png: {found}; labels are one channel of 8 or 16 bits, or the indices"):
        open_segmentation(str(tmp_path), "train")[0]


def test_annotations_of_four_bits(tmp_path):
    """Decoders stretch 1 of 15 to 17 of 255."""
    names(tmp_path, "a", "b", "c")
    write_image(tmp_path, labels=np.zeros((2, 8), dtype=np.uint8))
    path = tmp_path / "annotations" / "training" / "a.png"
    write_png(path, [b"\x01\x20\x00\x11"] * 2, 4, 0)
    with pytest.raises(DataError, match="4-bit grayscale"):
        open_segmentation(str(tmp_path), "train")[0]
    write_png(path, [b"\0\1\2\0\0\0\1\1"] * 2, 8, 0)
    assert open_segmentation(str(tmp_path), "train")[0][1][1].tolist() == [0, 1, 2, 0, 0, 0, 1, 1]


def test_damaged_files_are_named(tmp_path):
    names(tmp_path, "a", "b", "c")
    write_image(tmp_path)
    path = tmp_path / "annotations" / "training" / "a.png"
    whole = path.read_bytes()
    Image.fromarray(LABELS).save(path, "JPEG")
    jpeg = path.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", jpeg):
        path.write_bytes(damage)
        with pytest.raises(DataError, match=r"annotations/training/a\.png: not a readable PNG"):
            open_segmentation(str(tmp_path), "train")[0]
    (tmp_path / "images" / "training" / "a.png").write_bytes(b"?")
    with pytest.raises(DataError, match=r"images/training/a\.png: not a readable image"):
        open_segmentation(str(tmp_path), "train")[0]


@pytest.fixture
def one_thread():
    """As in loader processes; two threads wait for each other when other programs keep the cores busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_camvid(shared_data, one_thread):
    root = str(shared_data / "camvid")
    train, val = open_segmentation(root, "train"), open_segmentation(root, "val")
    assert (len(train), len(val), len(train.classes)) == (367, 101, 11)
    metrics = SegmentationMetrics(11)
    for i in range(len(val)):
        image, labels = val[i]
        assert image.shape == (3, 360, 480)
        metrics.update(labels, labels)
    assert metrics.compute() == {"mIoU": 100, "mAcc": 100, "aAcc": 100}
    assert metrics.matrix.diagonal().min() > 0  # every class occurs
    assert 0.9 < metrics.matrix.sum() / (101 * 360 * 480) < 1  # and a few pixels are ignored
    assert train[0][0].shape == (3, 360, 480)
    # Labels and images belong together: the sky is brighter than the road.
    sky, road = image.float().mean(0)[labels == 0].mean(), image.float().mean(0)[labels == 3].mean()
    assert sky > road + 30
