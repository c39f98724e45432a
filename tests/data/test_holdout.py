"""Validation images that are held out of an image folder without a validation split."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from torch.utils.data import DataLoader

from deformvit.data import DataError, open_split
from deformvit.data.classification import FolderImages
from deformvit.data.classification_transforms import eval_transform
from deformvit.errors import UserError

COUNTS = {"boot": 40, "coat": 11, "hat": 2, "scarf": 1}


def write(root: Path, counts: dict[str, int] = COUNTS, first: int = 0) -> None:
    """Image files of different colours; a pixel says its class and number."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(first, count):
            Image.new("RGB", (6, 4), (label, number, 0)).save(root / name / f"{number}.png")


def names(root: Path, split: str, holdout: float = 0.1, seed: int = 0) -> list[str]:
    images = open_split(str(root), split, holdout=holdout, seed=seed)
    return [Path(path).relative_to(images.root).as_posix() for path, _ in images.samples]


@pytest.mark.parametrize("inner", ["train", "training", ""])
def test_parts_are_disjoint_complete_and_hold_a_share_of_every_class(tmp_path, inner):
    write(tmp_path / inner)
    train, val = names(tmp_path, "train"), names(tmp_path, "val")
    assert not set(train) & set(val)
    assert sorted(train + val) == sorted(f"{name}/{i}.png" for name, count in COUNTS.items() for i in range(count))
    # A tenth of 40 and of 11; one of two images; never the only one.
    assert Counter(name.split("/")[0] for name in val) == {"boot": 4, "coat": 1, "hat": 1}


def test_items_and_classes(tmp_path):
    write(tmp_path)
    for split in ("train", "val"):
        images = open_split(str(tmp_path), split, holdout=0.25)
        assert images.classes == list(COUNTS)
        assert images.notice == (  # 10 of 40, 3 of 11, 1 of 2
            f"{tmp_path}: 14 of 54 images are held out for validation, as it has no validation split (holdout 0.25, "
            "seed 0)"
        )
        assert len(images) == {"train": 54 - 14, "val": 14}[split]
        assert images.targets == [label for _, label in images.samples]
        for i, (path, _) in enumerate(images.samples):
            image, label = images[i]
            assert image.getpixel((0, 0)) == (label, int(Path(path).stem), 0)
            assert images.classes[label] == Path(path).parent.name


def test_almost_everything_held_out_leaves_an_image_of_every_class_to_train(tmp_path):
    write(tmp_path)
    assert Counter(name.split("/")[0] for name in names(tmp_path, "train", 0.99)) == dict.fromkeys(COUNTS, 1)


def test_the_seed_chooses(tmp_path):
    write(tmp_path)
    chosen = [frozenset(names(tmp_path, "val", seed=seed)) for seed in range(5)]
    assert len(set(chosen)) == 5
    for seed in range(5):
        assert not chosen[seed] & set(names(tmp_path, "train", seed=seed))


def test_the_choice_depends_on_files_alone(tmp_path):
    """Neither on where the folder is, nor on the order of listing, nor on other classes; it is the same everywhere."""
    write(tmp_path / "here")
    chosen = names(tmp_path / "here", "val")
    assert [name for name in chosen if name.startswith("boot")] == BOOTS
    assert names(tmp_path / "here", "val") == chosen
    (tmp_path / "here").rename(tmp_path / "there")
    assert names(tmp_path / "there", "val") == chosen
    write(tmp_path / "there", COUNTS | {"tie": 9})
    assert [name for name in names(tmp_path / "there", "val") if not name.startswith("tie")] == chosen

    images = FolderImages(tmp_path / "there")
    random.Random(3).shuffle(images.samples)
    images.keep("val", 0.1, 0)
    listed = {Path(path).relative_to(images.root).as_posix() for path, _ in images.samples}
    assert {name for name in listed if not name.startswith("tie")} == set(chosen)


BOOTS = ["boot/15.png", "boot/21.png", "boot/3.png", "boot/32.png"]
"""The paths of the smallest hashes: a change of the rule would mix training and validation of older runs."""


def test_new_images_move_few_of_the_others(tmp_path):
    write(tmp_path, {"boot": 40})
    before = set(names(tmp_path, "val"))
    write(tmp_path, {"boot": 60}, first=40)
    after = set(names(tmp_path, "val"))
    assert len(after) == 6
    assert {name for name in after if int(Path(name).stem) < 40} <= before


def test_loader_processes_read_the_same_images(tmp_path):
    write(tmp_path)
    images = open_split(str(tmp_path), "val", eval_transform(4, 1.0, "square", (0, 0, 0), (1, 1, 1)), holdout=0.2)
    batches = [list(DataLoader(images, 5, num_workers=workers)) for workers in (0, 2)]
    for (alone, labels), (shared, shared_labels) in zip(*batches, strict=True):
        assert (alone == shared).all()
        assert (labels == shared_labels).all()


def test_a_validation_split_is_taken_as_it_is(tmp_path):
    write(tmp_path / "train")
    write(tmp_path / "val", {"boot": 3})
    assert len(names(tmp_path, "train")) == 54
    assert names(tmp_path, "val") == ["boot/0.png", "boot/1.png", "boot/2.png"]
    assert open_split(str(tmp_path), "val", holdout=0.1).notice == ""


def test_hidden_files_and_folders_are_not_images(tmp_path):
    write(tmp_path, {"boot": 4})
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / "boot" / "._0.png").write_bytes(b"resource fork")
    train, val = open_split(str(tmp_path), "train", holdout=0.1), open_split(str(tmp_path), "val", holdout=0.1)
    assert (train.classes, len(train), len(val)) == (["boot"], 3, 1)


def test_what_cannot_be_held_out_is_named(tmp_path):
    write(tmp_path / "one", {"boot": 1, "coat": 1})
    for split in ("train", "val"):
        with pytest.raises(DataError, match=r"one: no class has two images, so none can be held out for validation$"):
            open_split(str(tmp_path / "one"), split, holdout=0.5)
    write(tmp_path / "off" / "train")
    with pytest.raises(DataError, match=r"off: no val images; looked for val/.*; of class folders, holdout can hold"):
        open_split(str(tmp_path / "off"), "val")
    assert len(names(tmp_path / "off", "train", holdout=0)) == 54
    for share in (-0.1, 1.0):
        with pytest.raises(UserError, match=rf"holdout must be at least 0 and below 1, got {share}"):
            open_split(str(tmp_path), "train", holdout=share)


def test_an_evaluation_without_training_takes_all_images(tmp_path):
    write(tmp_path, {"boot": 1, "coat": 7})
    assert len(names(tmp_path, "val", holdout=1)) == 8
    write(tmp_path / "split" / "train", {"boot": 3})
    write(tmp_path / "split" / "val", {"boot": 2})
    assert len(names(tmp_path / "split", "val", holdout=1)) == 2  # what there is for it


@pytest.mark.parametrize("name", ["val", "Train", "test"])
def test_folders_of_splits_are_not_classes(tmp_path, name):
    write(tmp_path / name)
    (tmp_path / "other").mkdir()
    if (tmp_path / "train").exists():
        pytest.skip("names of files ignore case here")
    with pytest.raises(DataError, match="no train images; looked for train/"):
        open_split(str(tmp_path), "train", holdout=0.1)
