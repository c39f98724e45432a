"""What training and ``deformvit eval`` say and write of classes that are mistaken for one another."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from PIL import Image

from deformvit import load
from deformvit.cli import confusion
from deformvit.data import open_split
from deformvit.metrics.classification import Confusion
from deformvit.runs import read_metrics
from deformvit_command import main

CLASSES = ["Ankle boot", "Bag", "Trouser"]


@pytest.fixture(scope="module")
def clothes(tmp_path_factory):
    """Garments of three classes, with a validation split of different numbers of images."""
    root = tmp_path_factory.mktemp("clothes")
    for split, counts in (("train", (20, 20, 20)), ("val", (5, 9, 7))):
        images = open_split("sample", split)
        left = dict(zip(CLASSES, counts, strict=True))
        for i in range(len(images)):
            name = images.classes[images.labels[i]]
            if left.get(name, 0):
                left[name] -= 1
                (root / split / name).mkdir(parents=True, exist_ok=True)
                images[i][0].save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(clothes, tmp_path_factory):
    """A short run, and what the command said."""
    folder = tmp_path_factory.mktemp("runs") / "clothes"
    command = [
        sys.executable, "-m", "deformvit", "train", "demo", "--data.root", clothes, "--data.batch-size", "20",
        "--run.epochs", "3", "--run.no-progress", "--run.device", "cpu", "--run.output", folder, "--model.args",
        "dims", "(8, 8, 16, 16)", "num_heads", "(1, 1, 2, 2)", "groups", "1", "depths", "(1, 2, 2, 1)",
    ]  # fmt: skip
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def evaluate(run, clothes, *more):
    main(["eval", "-m", str(run[0]), "-d", str(clothes), "--workers", "0", "--device", "cpu", *map(str, more)])


def table(text):
    """Accuracy, hits and images by class, in the order of the lines."""
    lines = re.findall(r"^  (\S.*?) +([\d.]+) %  +(\d+) of (\d+)", text, re.MULTILINE)
    return {name: (float(percent), int(hits), int(images)) for name, percent, hits, images in lines}


def by_hand(run, clothes):
    """Counts of predictions, one image after another."""
    predictor, matrix = load(run[0], device="cpu"), torch.zeros(3, 3, dtype=torch.int64)
    for true, name in enumerate(CLASSES):
        for path in (clothes / "val" / name).iterdir():
            matrix[true, int(predictor(path, top=1).labels[0])] += 1
    return matrix


def test_a_run_says_what_its_best_model_mistakes(run, clothes):
    folder, told = run
    matrix = by_hand(run, clothes)
    content = json.loads((folder / "confusion.json").read_text())
    assert content["matrix"] == matrix.tolist()
    best = max(read_metrics(folder), key=lambda line: line["top1"])
    assert content["metrics"] == {"top1": best["top1"], "loss": best["loss"]}  # three classes have no top5
    assert "top5" not in told
    with Image.open(folder / "confusion.png") as picture:
        assert min(picture.size) > 400
    assert f"confusion matrix: {folder / 'confusion.png'} and {folder / 'confusion.json'}" in told
    found = table(told.split("accuracy by class (best weights, 21 images)")[1])
    assert found == {
        name: (pytest.approx(100 * int(row[i]) / int(row.sum()), abs=0.05), row[i], row.sum())
        for i, (name, row) in enumerate(zip(CLASSES, matrix, strict=True))
    }
    assert [value[0] for value in found.values()] == sorted(value[0] for value in found.values())


def test_eval_says_the_same_and_writes_where_it_is_asked_to(run, clothes, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluate(run, clothes)
    told = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert table(told) == table(run[1].split("accuracy by class")[1])
    evaluate(run, clothes, "-o", "measured")
    assert sorted(path.name for path in (tmp_path / "measured").iterdir()) == ["confusion.json", "confusion.png"]
    found = Confusion.read(tmp_path / "measured" / "confusion.json")
    assert torch.equal(found.entries, Confusion.read(run[0] / "confusion.json").entries)
    capsys.readouterr()
    before = (run[0] / "confusion.json").read_bytes()
    with pytest.raises(SystemExit):
        evaluate(run, clothes, "-o", run[0])
    assert "confusion.json exists; delete it, or write elsewhere" in capsys.readouterr().err
    assert (run[0] / "confusion.json").read_bytes() == before


def test_eval_of_a_folder_without_splits(run, clothes, capsys):
    """A share of it, as training would hold out, unless all of it is asked for."""
    for options, images, told in (([], 6, "; --holdout 1 measures all images"), (["--holdout", 1], 60, "seed 0)")):
        evaluate(run, clothes / "train", *options)
        printed = capsys.readouterr()
        assert sum(found[2] for found in table(printed.out).values()) == images
        assert f"{images} of 60 images are held out" in printed.err
        assert printed.err.endswith(f"{told}\n")


def test_several_processes_count_the_same(run, clothes, tmp_path):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "deformvit",
        "eval", "-m", run[0], "-d", clothes, "--workers", "0", "--batch-size", "4", "--device", "cpu", "-o",
        tmp_path / "two",
    ]  # fmt: skip
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert table(done.stdout) == table(run[1].split("accuracy by class")[1])
    assert done.stdout.count("accuracy by class") == 1  # one process speaks
    alone, two = (json.loads((folder / "confusion.json").read_text()) for folder in (run[0], tmp_path / "two"))
    assert two["matrix"] == alone["matrix"]
    assert two["metrics"] == pytest.approx(alone["metrics"], rel=1e-4)


def test_without_matplotlib_the_numbers_are_written(run, clothes, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [name for name in sys.modules if name.startswith(("deformvit.figures", "matplotlib."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("deformvit.figures", raising=False)
    evaluate(run, clothes, "-o", tmp_path)
    told = capsys.readouterr()
    assert told.err.count("no confusion.png: it needs matplotlib: pip install 'deformvit[figures]'") == 1
    assert f"confusion matrix: {tmp_path / 'confusion.json'}\n" in told.out
    assert [path.name for path in tmp_path.iterdir()] == ["confusion.json"]


def test_of_many_classes_the_worst_are_printed(capsys):
    hits = torch.arange(30)
    entries = torch.cat((
        torch.stack((hits, hits, hits), 1)[1:], torch.stack((hits, (hits + 1) % 30, 40 - hits), 1),
    ))  # fmt: skip
    names = [*(f"class {i}" for i in range(30)), "un\x1b[31mseen"]
    confusion.print_by_class(Confusion(names, entries))
    told = capsys.readouterr().out
    assert list(table(told)) == names[:20]
    assert table(told)["class 7"] == (17.5, 7, 40)
    assert "33 as class 8" in told
    assert "and 10 more classes, from 50.0 to 72.5 %" in told
    assert f"mean of the classes {sum(range(30)) / 30 / 40 * 100:.1f} %" in told
    assert "no images of un [31mseen\n" in told  # a terminal's control characters are not obeyed


def test_names_that_the_font_lacks_are_no_reason_to_warn(tmp_path, recwarn):
    found = Confusion(["猫", "犬"], torch.tensor([[0, 0, 1], [1, 0, 2]]))
    assert confusion.draw(found, tmp_path / "drawn.png") == [tmp_path / "drawn.png"]
    assert [str(warning.message) for warning in recwarn if "Glyph" in str(warning.message)] == []
