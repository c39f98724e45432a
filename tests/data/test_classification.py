"""Classification images: where they are found, how they are prepared, and the messages when they are not there."""

from __future__ import annotations

import json
import pickle
import random
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from deformvit.config import AugmentConfig, DataConfig
from deformvit.data import DataError, eval_transform, open_split, train_transform

MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.3, 0.1)


def png(value=120, size=(9, 7), mode="RGB"):
    import io

    buffer = io.BytesIO()
    Image.new(mode, size, value if mode != "RGB" else (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path, images, labels, names=("cat", "dog"), image="image", label="label", plain=False):
    cells = images if plain else [{"bytes": data, "path": None} for data in images]
    table = pa.table({image: cells, label: labels})
    if names:
        features = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": list(names)}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def test_embedded_sample():
    train, val = open_split("sample", "train"), open_split("sample", "val")
    assert (len(train), len(val)) == (6000, 1000)
    assert np.bincount(train.labels).tolist() == [600] * 10
    assert np.bincount(val.labels).tolist() == [100] * 10
    assert train.classes[9] == "Ankle boot"
    image, _ = train[0]
    assert (image.size, image.mode) == ((28, 28), "RGB")


def test_image_folder(tmp_path):
    for split in ("train", "val"):
        for i, name in enumerate(("apple", "pear")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            (folder / "a.png").write_bytes(png(100 * i))
    images = open_split(str(tmp_path), "train")
    assert images.classes == ["apple", "pear"]
    image, label = images[1]
    assert (image.getpixel((0, 0)), label) == ((100, 0, 0), 1)


def test_other_layouts(tmp_path):
    """Parquet files in a folder per split, and one file whose column names the split."""
    write_parquet(tmp_path / "train" / "0000.parquet", [png(1)], [0])
    write_parquet(tmp_path / "test" / "0000.parquet", [png(2)], [1])
    assert [len(open_split(str(tmp_path), split)) for split in ("train", "val")] == [1, 1]
    single = tmp_path / "all.parquet"
    write_parquet(single, [png(i) for i in range(5)], [0, 1, 0, 1, 0])
    table = pq.read_table(single).append_column("split", [["train", "validation", "test", "train", "test"]])
    pq.write_table(table, single)
    assert open_split(str(single), "val").labels == [1]  # validation before test, not both
    pq.write_table(table.filter(pa.array([True, False, False, True, False])), single)
    with pytest.raises(DataError, match="the val split is empty"):
        open_split(str(single), "val")


def test_folder_pickles_for_spawned_workers(tmp_path):
    folder = tmp_path / "train" / "cat"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(png(7))
    images = pickle.loads(pickle.dumps(open_split(str(tmp_path), "train")))
    assert images[0][0].getpixel((0, 0)) == (7, 0, 0)


@pytest.mark.parametrize(
    "names",
    [
        ("train.parquet", "test.parquet"),
        ("data/train-00000-of-00002.parquet", "data/validation-00000-of-00001.parquet"),
    ],
)
def test_parquet_shards(tmp_path, names):
    write_parquet(tmp_path / names[0], [png(1), png(2)], [0, 1])
    if "00002" in names[0]:
        write_parquet(tmp_path / names[0].replace("00000", "00001"), [png(3)], [1])
    write_parquet(tmp_path / names[1], [png(9)], [1])
    train, val = open_split(str(tmp_path), "train"), open_split(str(tmp_path), "val")
    assert train.classes == ["cat", "dog"]
    assert [train[i][0].getpixel((0, 0))[0] for i in range(len(train))] == [1, 2, 3][: len(train)]
    assert val[0][1] == 1


def test_parquet_of_other_column_names_and_bytes(tmp_path):
    write_parquet(tmp_path / "train.parquet", [png(5)], [2], names=(), image="img", label="fine_label", plain=True)
    images = open_split(str(tmp_path), "train")
    assert images.classes == ["0", "1", "2"]
    assert images[0][0].getpixel((0, 0)) == (5, 0, 0)


def test_missing_things_are_named(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        open_split(str(tmp_path / "nowhere"), "train")
    with pytest.raises(DataError, match=r"no train images; looked for train/, train\*\.parquet or train\*\.tar"):
        open_split(str(tmp_path), "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="not a folder of class folders"):
        open_split(str(tmp_path), "train")
    (tmp_path / "a.parquet").write_text("no parquet")
    with pytest.raises(DataError, match=r"a\.parquet: not readable as parquet"):
        open_split(str(tmp_path / "a.parquet"), "train")


def test_wrong_columns_and_labels_are_named(tmp_path):
    pq.write_table(pa.table({"picture": [b""], "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="no Image column among picture, label"):
        open_split(str(tmp_path), "train")
    write_parquet(tmp_path / "train.parquet", [png()], ["cat"], names=())
    with pytest.raises(DataError, match="column label must hold class numbers, found string"):
        open_split(str(tmp_path), "train")
    write_parquet(tmp_path / "train.parquet", [png(), png()], [0, 7])
    with pytest.raises(DataError, match="row 1 has label 7, expected 0 to 1"):
        open_split(str(tmp_path), "train")


@pytest.mark.parametrize("damage", [b"not an image", png()[:40], b""])
def test_corrupt_images_are_named(tmp_path, damage):
    write_parquet(tmp_path / "train.parquet", [png(), damage], [0, 1])
    with pytest.raises(DataError, match=r"train\.parquet, row 1: not a readable image"):
        open_split(str(tmp_path), "train")[1]
    folder = tmp_path / "val" / "cat"
    folder.mkdir(parents=True)
    (folder / "broken.png").write_bytes(damage)
    with pytest.raises(DataError, match=r"broken\.png: not a readable image"):
        open_split(str(tmp_path), "val")[0]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("P", 1, (9, 200, 30)),
        ("RGBA", (9, 200, 30, 128), (9, 200, 30)),  # transparency is dropped
        ("1", 1, (255, 255, 255)),
        ("I;16", 77 << 8, (77, 77, 77)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, colour, expected):
    folder = tmp_path / "train" / "cat"
    folder.mkdir(parents=True)
    image = Image.new(mode, (8, 6), colour)
    if mode == "P":
        image.putpalette([0, 0, 0, 9, 200, 30])
    image.save(folder / "a.png")
    decoded, _ = open_split(str(tmp_path), "train")[0]
    assert (decoded.mode, decoded.size) == ("RGB", (8, 6))
    assert decoded.getcolors() == [(48, expected)]


def test_eval_resizes_as_asked():
    wide = Image.new("RGB", (200, 100))
    wide.paste((255, 255, 255), (100, 0, 200, 100))
    shorter = eval_transform(50, 1.0, "shorter", (0, 0, 0), (1, 1, 1))(wide)
    square = eval_transform(50, 1.0, "square", (0, 0, 0), (1, 1, 1))(wide)
    assert shorter.shape == square.shape == (3, 50, 50)
    # The seam stays in the middle; only without distortion does the crop lose the outer quarters.
    tall = Image.new("RGB", (200, 100))
    tall.paste((255, 255, 255), (170, 0, 200, 100))
    assert eval_transform(50, 1.0, "shorter", (0, 0, 0), (1, 1, 1))(tall).max() == 0
    assert eval_transform(50, 1.0, "square", (0, 0, 0), (1, 1, 1))(tall).max() == 1
    torch.testing.assert_close(shorter[:, :, 0], torch.zeros(3, 50))


MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.25, 0.2)
PLAIN = AugmentConfig(crop="none", hflip=0.0, color_jitter=0.0, auto_augment="")


def normalised(colour):
    """(3, 1, 1)"""
    return ((torch.tensor(colour) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).view(3, 1, 1)


@pytest.mark.parametrize("crop", ["none", "padded", "resized"])
def test_training_normalises_by_mean_and_std(crop):
    transform = train_transform(DataConfig(img_size=40, mean=MEAN, std=STD), replace(PLAIN, crop=crop))
    for size in ((28, 28), (100, 37)):
        out = transform(Image.new("RGB", size, (51, 102, 204)))
        torch.testing.assert_close(out, normalised((51.0, 102.0, 204.0)).expand(3, 40, 40))


def test_evaluation_normalises_by_mean_and_std():
    for resize in ("shorter", "square"):
        out = eval_transform(40, 0.9, resize, MEAN, STD)(Image.new("RGB", (90, 61), (51, 102, 204)))
        torch.testing.assert_close(out, normalised((51.0, 102.0, 204.0)).expand(3, 40, 40))


def columns(transform, side=64):
    """Columns of an image whose red is its column, as a transform returns it: (H, W) in pixels."""
    red = np.broadcast_to(np.arange(side, dtype=np.uint8) * 2, (side, side))
    image = Image.fromarray(np.stack([red, red * 0, red * 0], -1))
    return transform(image)[0] * 255 / 2


def test_crops():
    """Of an image as large as the result: the whole; itself moved by up to an eighth; a part of random area."""
    data = DataConfig(img_size=64, mean=(0, 0, 0), std=(1, 1, 1))
    expected = torch.arange(64.0).expand(64, 64)
    torch.testing.assert_close(columns(train_transform(data, PLAIN)), expected, atol=1e-3, rtol=0)
    padded = train_transform(data, replace(PLAIN, crop="padded"))
    shifts = {round(float(columns(padded)[0, 32])) - 32 for _ in range(200)}
    assert shifts == set(range(-8, 9))
    resized = train_transform(data, replace(PLAIN, crop="resized", scale=(0.25, 0.25)))
    widths = [float(row.max() - row.min()) for row in (columns(resized)[0] for _ in range(50))]
    assert min(widths) > 20
    assert max(widths) < 45  # half of the side, times an aspect of 3 / 4 to 4 / 3


def test_flips_as_often_as_asked():
    data = DataConfig(img_size=64, mean=(0, 0, 0), std=(1, 1, 1))
    for probability, expected in ((0.0, range(1)), (0.5, range(60, 140)), (1.0, range(200, 201))):
        transform = train_transform(data, replace(PLAIN, hflip=probability))
        assert sum(bool(row[0] > row[-1]) for row in (columns(transform)[0] for _ in range(200))) in expected


def test_random_erasing_replaces_a_part_by_noise():
    data = DataConfig(img_size=64, mean=MEAN, std=STD)
    image, colour = Image.new("RGB", (64, 64), (51, 102, 204)), normalised((51.0, 102.0, 204.0))
    for probability, expected in ((0.0, range(1)), (0.25, range(20, 80)), (1.0, range(195, 201))):
        transform = train_transform(data, replace(PLAIN, random_erasing=probability))
        changed = [(transform(image) - colour).abs().amax(0) > 1e-4 for _ in range(200)]
        assert sum(bool(pixels.any()) for pixels in changed) in expected
    parts = torch.stack([pixels.float().mean() for pixels in changed if pixels.any()])
    assert parts.min() > 0.01
    assert parts.max() < 0.4  # timm's third, and rounding


def test_automatic_augmentation_changes_images_and_keeps_their_range():
    transform = train_transform(DataConfig(img_size=40, mean=MEAN, std=STD), replace(PLAIN, auto_augment="rand-m9"))
    image = Image.effect_noise((50, 50), 80).convert("RGB")
    plain = train_transform(DataConfig(img_size=40, mean=MEAN, std=STD), PLAIN)(image)
    low, high = normalised((0.0, 0.0, 0.0)), normalised((255.0, 255.0, 255.0))
    random.seed(0)  # timm draws from Python's and NumPy's generators
    np.random.seed(0)
    different = 0
    for _ in range(30):
        out = transform(image)
        assert ((out >= low - 1e-5) & (out <= high + 1e-5)).all()
        different += not torch.allclose(out, plain)
    assert different > 10  # each of two operations is left out half of the time


@pytest.mark.parametrize(("resize", "whole"), [("shorter", False), ("square", True)])
def test_a_padded_crop_keeps_the_aspect_ratio_as_evaluation_does(resize, whole):
    ramp = np.tile(np.linspace(0, 255, 300, dtype=np.uint8)[None, :, None], (100, 1, 3))
    data = DataConfig(img_size=32, resize=resize, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    torch.manual_seed(0)
    crop = train_transform(data, replace(PLAIN, crop="padded"))(Image.fromarray(ramp))
    assert crop.shape == (3, 32, 32)
    seen = float(crop.max() - crop.min())  # of the image's width
    assert seen > 0.8 if whole else seen < 0.4
