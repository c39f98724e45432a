"""Classifiers trained on class folders alone: training and evaluation agree on the images that are held out."""

from __future__ import annotations

from pathlib import Path

import pytest

from deformvit import recipes
from deformvit.data import open_split
from deformvit.engine import loop
from deformvit.runs import read_metrics
from deformvit.tasks.classification import Classification
from deformvit_command import main


@pytest.fixture(scope="module")
def clothes(tmp_path_factory):
    """Sixty garments of three classes in class folders, without splits."""
    root = tmp_path_factory.mktemp("clothes")
    images = open_split("sample", "train")
    counts = dict.fromkeys(("Trouser", "Bag", "Ankle boot"), 20)
    for i in range(len(images)):
        name = images.classes[images.labels[i]]
        if counts.get(name, 0):
            counts[name] -= 1
            (root / name).mkdir(exist_ok=True)
            images[i][0].save(root / name / f"{i}.png")
    return root


def config(root, output, seed=0):
    run = recipes.ALL["demo"]()
    run.data.root, run.data.batch_size = str(root), 18
    run.run.output, run.run.epochs, run.run.progress, run.run.seed = output, 2, False, seed
    return run


def test_a_run_trains_on_some_images_and_is_measured_on_the_others(clothes, tmp_path):
    task = Classification(config(clothes, tmp_path))
    trained, measured = ({Path(path) for path, _ in images.samples} for images in (task.train_set, task.val_set))
    assert trained.isdisjoint(measured)
    assert trained | measured == set(clothes.glob("*/*.png"))
    assert sorted(path.parent.name for path in measured) == sorted(["Ankle boot", "Bag", "Trouser"] * 2)
    found = dict(task.describe(task.build_model()))
    assert found["images"] == f"{clothes}: 54 to train, 6 held out (holdout 0.1, seed 0) to validate"
    assert found["classes"] == "3: Ankle boot 18, Bag 18, Trouser 18"
    assert found["weights"] == "none, trained from scratch"
    # The seed of the run does not move images between the two: runs of several seeds are compared on the same images.
    other = Classification(config(clothes, tmp_path, seed=1))
    assert {Path(path) for path, _ in other.val_set.samples} == measured


def test_eval_measures_the_images_that_training_held_out(clothes, tmp_path, capsys):
    run = config(clothes, tmp_path / "run")
    loop.fit(Classification(run), run)
    best = max(line["top1"] for line in read_metrics(tmp_path / "run"))
    capsys.readouterr()
    main(["eval", "--model", str(tmp_path / "run" / "best.safetensors"), "--data", str(clothes), "--workers", "0"])
    printed = capsys.readouterr()
    values = dict(line.split() for line in printed.out.splitlines() if len(line.split()) == 2)
    assert values["images"] == "6"
    assert float(values["top1"]) == pytest.approx(best, abs=0.01)
    assert "6 of 60 images are held out" in printed.err
