"""``deformvit predict --json`` and ``--csv``: what a spreadsheet or a script reads of many images."""

from __future__ import annotations

import csv
import io
import json
import os
import sys

import pytest

from deformvit import load
from deformvit.data import open_split
from deformvit_command import main


def predict(*words):
    main(["predict", "--device", "cpu", *map(str, words)])


def fails(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        predict(*words)
    assert stop.value.code == 1
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    return told.err


@pytest.fixture
def photos(tmp_path):
    """Seven images, of which the third and the last are not readable, and the second has an awkward name."""
    split, folder = open_split("sample", "val"), tmp_path / "photos"
    folder.mkdir()
    for i, name in enumerate(("0", '1, "a"\nb', "2", "3", "4", "5", "6")):
        split[101 * i][0].save(folder / f"{name}.png")
    for name in ("2", "6"):
        (folder / f"{name}.png").write_bytes(b"not an image")
    return folder


def test_every_image_in_its_order(photos, tmp_path, capsys):
    """The unreadable ones too, in their places; with batches that end before, at and after them."""
    paths, predictor = sorted(photos.iterdir()), load("dat_nano.cifar10", device="cpu")
    for batch in (1, 2, 3, 32):
        table, values = tmp_path / f"{batch}.csv", tmp_path / f"{batch}.json"
        error = "deformvit: "
        with pytest.raises(SystemExit) as stop:
            predict(photos, "--top", 2, "--batch-size", batch, "--csv", table, "--json", values)
        assert stop.value.code == 1
        told = capsys.readouterr()
        assert [line[:11] for line in told.err.splitlines()] == [error, error]
        assert told.out.splitlines() == [str(values), str(table)]  # no classes between
        with open(table, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        entries = json.loads(values.read_text())
        assert [row["image"] for row in rows] == [entry["image"] for entry in entries] == [str(path) for path in paths]
        for path, row, entry in zip(paths, rows, entries, strict=True):
            if path.stem in ("2", "6"):
                assert set(entry) == {"image", "error"}
                assert entry["error"].startswith(f"{path}: not a readable image")
                assert row == dict.fromkeys(row, "") | entry
                continue
            result = predictor(path, top=2)
            assert entry["task"] == "classification"
            assert [found["name"] for found in entry["predictions"]] == result.names
            assert [row["name1"], row["name2"]] == result.names
            assert [float(row["score1"]), float(row["score2"])] == pytest.approx(result.scores.tolist(), abs=1e-4)
            assert row["error"] == ""
    assert list(rows[0]) == ["image", "name1", "score1", "name2", "score2", "error"]


def test_dash_is_the_standard_output(capsys, tmp_path):
    predict("sample", "--top", 1, "--json", "-")
    assert [entry["image"] for entry in json.loads(capsys.readouterr().out)] == [f"sample{i}" for i in range(8)]
    predict("photo", "--top", 99, "--csv", "-", "--json", tmp_path / "photo.json")  # of ten classes
    told = capsys.readouterr()
    header, row = csv.reader(io.StringIO(told.out))
    assert len(header) == len(row) == 1 + 2 * 10 + 1
    assert row[:2] == ["cat.jpg", "cat"]
    assert told.err == f"{tmp_path / 'photo.json'}\n"  # what is not data goes elsewhere
    (entry,) = json.loads((tmp_path / "photo.json").read_text())
    assert len(entry["predictions"]) == 10


def test_nothing_readable(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"")
    fails(capsys, tmp_path / "a.png", "--csv", tmp_path / "a.csv", "--json", tmp_path / "a.json")
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 2
    assert len(json.loads((tmp_path / "a.json").read_text())) == 1


def test_nothing_is_overwritten(photos, tmp_path, capsys):
    photo, old = photos / "0.png", tmp_path / "old.csv"
    old.write_text("kept")
    for words, message in (
        (["--csv", photo], "0.png is one of the images"),
        (["--csv", old], "old.csv exists; delete it, or write elsewhere"),
        (["--json", old], "old.csv exists"),
        (["--json", tmp_path / "new", "--csv", tmp_path / "new"], "json and csv are both"),
        (["--json", "-", "--csv", "-"], "json and csv are both -"),
    ):
        before = photo.read_bytes()
        assert message in fails(capsys, photo, *words)
        assert photo.read_bytes() == before
    assert old.read_text() == "kept"
    assert not (tmp_path / "new").exists()


def test_a_failure_leaves_no_part_of_a_file(photos, tmp_path, capsys):
    message = fails(
        capsys, photos, "--top", 0, "--csv", tmp_path / "out" / "a.csv", "--json", tmp_path / "out" / "a.json"
    )
    assert "top must be at least 1, got 0" in message
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("words", [[], ["--csv", "-"]])
def test_names_that_are_not_utf8_are_printed_as_they_are(photos, monkeypatch, words):
    name = os.fsencode((photos / "0.png").rename(os.fsdecode(os.fsencode(photos) + b"/\xff.png")))
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "utf-8", errors="strict"))
    predict(os.fsdecode(name), "--top", 1, *words)
    sys.stdout.flush()
    assert name in printed.getvalue()


def test_the_table_has_such_names_too(photos, tmp_path):
    name = os.fsencode((photos / "0.png").rename(os.fsdecode(os.fsencode(photos) + b"/\xff.png")))
    predict(os.fsdecode(name), "--csv", tmp_path / "a.csv", "--json", tmp_path / "a.json")
    assert name in (tmp_path / "a.csv").read_bytes()
    assert json.loads((tmp_path / "a.json").read_text())[0]["image"] == os.fsdecode(name)
