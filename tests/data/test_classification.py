"""Classification images: where they are found, how they are prepared, and the messages when they are not there."""

from __future__ import annotations

import json
import pickle

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


@pytest.mark.parametrize(
    "augment",
    [
        AugmentConfig(),
        AugmentConfig(crop="none", auto_augment=""),
        AugmentConfig(crop="padded", auto_augment="", random_erasing=0.25),
    ],
)
def test_train_transform_gives_normalised_tensors(augment):
    transform = train_transform(DataConfig(img_size=40, mean=MEAN, std=STD), augment)
    for size in ((28, 28), (100, 37)):
        out = transform(Image.effect_noise(size, 80).convert("RGB"))
        assert out.shape == (3, 40, 40)
        assert torch.isfinite(out).all()


def test_train_transform_normalises_each_channel():
    plain = AugmentConfig(crop="none", auto_augment="", color_jitter=0.0)
    out = train_transform(DataConfig(img_size=40, mean=MEAN, std=STD), plain)(
        Image.new("RGB", (28, 50), (51, 102, 255))
    )
    expected = [(value - mean) / std for value, mean, std in zip((0.2, 0.4, 1.0), MEAN, STD, strict=True)]
    torch.testing.assert_close(out, torch.tensor(expected)[:, None, None].expand(3, 40, 40))
