"""What is said of the annotations of a segmentation data set before training."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from deformvit.data import DataError
from deformvit.data.label_check import check_labels
from deformvit.data.segmentation import open_segmentation


def write(root, annotations, classes=()):
    """A training split of these annotations, each a list of labels, and names of classes."""
    for kind in ("images", "annotations"):
        (root / kind / "training").mkdir(parents=True)
    for i, labels in enumerate(annotations):
        row = np.array([labels], np.uint8)
        Image.fromarray(row).save(root / "annotations" / "training" / f"{i}.png")
        Image.new("RGB", (row.shape[1], 1)).save(root / "images" / "training" / f"{i}.png")
    if classes:
        (root / "classes.txt").write_text("\n".join(classes))
    return str(root)


def problems(root, **options):
    return check_labels(open_segmentation(root, "train", **options))


def test_good_annotations_are_not_remarked_on(tmp_path):
    assert problems(write(tmp_path, [[0, 1], [1, 2], [255, 2]], ["a", "b", "c"])) == []


def test_masks_of_0_and_255(tmp_path):
    root = write(tmp_path, [[0, 255], [255, 255]], ["ground", "cell"])
    assert problems(root) == [
        "all labels are 0 or 255 in the 2 annotations looked at (such as 0.png), and 255 means no class: only ground "
        "is learnt; write the second class as 1"
    ]
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(DataError, match="all labels are 0 or 255, and 255 means no class, which leaves one class"):
        open_segmentation(root, "train")
    (tmp_path / "classes.txt").write_text("ground\ncell")
    with pytest.raises(DataError, match="2 of the 2 annotations .* hold such labels. If 255 is the second of two clas"):
        problems(root, ignore_label=7)


def test_labels_that_are_no_classes_are_counted(tmp_path):
    root = write(tmp_path, [[0, 1], [1, 2], [7, 2]], ["a", "b"])
    with pytest.raises(DataError) as raised:
        problems(root)
    assert str(raised.value) == (
        f"{tmp_path / 'annotations' / 'training' / '1.png'}: label 2, expected 0 to 1, or 255 for none (2 classes); "
        "2 of the 3 annotations looked at hold such labels."
    )


def test_classes_that_never_occur_and_annotations_without_any(tmp_path):
    root = write(tmp_path, [[0, 1], [0, 1], [255, 255]], ["a", "b", "c", "d"])
    assert problems(root) == [
        "2 of 4 classes occur in none of the 3 annotations looked at: c, d",
        f"1 of the 3 annotations looked at has no class, such as {tmp_path / 'annotations' / 'training' / '2.png'}",
    ]
    assert check_labels(open_segmentation(root, "train"), most=1) == []  # the others may be in the rest


def test_an_unwanted_shift_is_named(tmp_path):
    root = write(tmp_path, [[0, 1, 2]], ["a", "b", "c"])
    assert problems(root) == []
    shifted = problems(root, reduce_zero_label=True)
    assert shifted[0] == (
        "label 0 means no class (data.reduce_zero_label) and label 3 occurs in none of the 1 annotations looked at; if "
        "0 is the class a, give --data.no-reduce-zero-label"
    )
