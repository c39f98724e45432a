"""``deformvit train --run.resume RUN``: a run goes on with its own configuration, and with no other."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from deformvit.runs import CONFIG, read_metrics
from deformvit_command import main

OPTIONS = [
    "--data.batch-size", "8", "--run.epochs", "2", "--run.no-progress", "--run.device", "cpu", "--optim.lr", "0.002",
    "--model.args", "dims", "(8, 16, 16, 16)", "num_heads", "(1, 2, 2, 2)", "groups", "1", "depths", "(1, 2, 2, 1)",
]  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two classes of ten images, of which one each is held out."""
    root = tmp_path_factory.mktemp("images")
    for number, name in enumerate(("dark", "light")):
        (root / name).mkdir()
        for i in range(10):
            Image.new("RGB", (28, 28), (100 * number + 5 * i,) * 3).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """A run of two epochs of two steps."""
    folder = tmp_path_factory.mktemp("runs") / "a run"
    main(["train", "demo", *OPTIONS, "--data.root", str(images), "--run.output", str(folder)])
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of that run."""
    shutil.copytree(finished, tmp_path / "a run")
    return tmp_path / "a run"


def train(*words):
    main(["train", *map(str, words)])


def refused(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train(*words)
    assert stop.value.code == 1
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    (line,) = printed.err.splitlines()
    return line


def weights(run):
    """Sums of the files of the newest checkpoint."""
    newest = max((run / "checkpoints").iterdir())
    return newest.name, json.loads((newest / "files.json").read_text())["__0_0.distcp"]


def test_a_run_says_what_it_found(images, tmp_path, capsys):
    train(
        "demo", *OPTIONS[:2], "--run.epochs", 1, "--data.root", images, "--run.output", tmp_path / "run",
        "--model.checkpoint", "dat_nano.cifar10", "--run.device", "cpu",
    )  # fmt: skip
    found = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines()[:7])
    assert {name: value.strip() for name, value in found.items()} == {
        "images": f"{images}: 18 to train, 2 held out (holdout 0.1, seed 0) to validate",
        "classes": "2: dark 9, light 9",
        "model": "dat_nano, 2,137,924 parameters, 32 x 32 pixels",
        "weights": "dat_nano.cifar10: classifier new, as the weights are of other classes",
        "device": "cpu",
        "training": "1 epochs of 2 steps of 8 images, rate 0.001, after 1 steps of warm-up",
        "output": str(tmp_path / "run"),
    }


def test_everything_comes_from_the_run(folder, images, tmp_path, capsys):
    """And the result is that of a run that was as long from the beginning."""
    train("--run.resume", folder, "--run.epochs", 3, "--run.save-minutes", 0)
    said = capsys.readouterr().out
    assert "resumes   after step 4 of 6, 4 till now; its rate goes on as in a run of 6, from" in said
    assert [epoch["epoch"] for epoch in read_metrics(folder)] == [0, 1, 2]
    config = json.loads((folder / CONFIG).read_text())
    assert config["optim"]["lr"] == 0.002
    assert config["run"]["output"] == str(folder)
    assert config["recipe"] == "demo"
    before = weights(folder)
    train("--run.resume", folder)
    assert weights(folder) == before
    assert "all 3 epochs are done" in capsys.readouterr().err


def test_the_command_that_began_a_run_goes_on_with_it(images, tmp_path, capsys):
    """The same script can be submitted again, whatever the run has chosen where the options left it open."""
    options = ["--data.root", images, "--data.img-size", 0, "--run.resume", tmp_path / "run"]
    for _ in range(2):
        train("demo", *OPTIONS, *options)
    printed = capsys.readouterr()
    assert printed.out.count("epoch 1/2") == 1
    assert "all 2 epochs are done" in printed.err
    assert refused(capsys, "--run.resume", tmp_path / "run", "--data.img-size", 48).startswith(
        f"deformvit: {tmp_path / 'run'} was begun with data.img_size 32 and not 48."
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optim.lr", "0.3"], "begun with optim.lr 0.002 and not 0.3. A run goes on as it began"),
        (["--run.epochs", "1"], "begun with run.epochs 2 and not 1."),
        (["--run.output", "other"], "run.output other: a run goes on in its own folder"),
        (["--data.root", "sample"], "on 18 images, but sample has 6000"),
        (["--data.root", "nowhere"], "data.root 'nowhere': no such file or folder"),
    ],
)
def test_another_run_is_refused(folder, capsys, words, message):
    assert message in refused(capsys, "--run.resume", folder, *words)
    assert [epoch["epoch"] for epoch in read_metrics(folder)] == [0, 1]


def test_moved_images_must_be_of_the_same_classes(folder, images, tmp_path, capsys):
    shutil.copytree(images, tmp_path / "moved")
    train("--run.resume", folder, "--data.root", tmp_path / "moved", "--data.workers", "1")
    assert json.loads((folder / CONFIG).read_text())["data"]["root"] == str(tmp_path / "moved")
    (tmp_path / "moved" / "light").rename(tmp_path / "moved" / "bright")
    assert "is of a run on other classes than those of" in refused(capsys, "--run.resume", folder)


def test_what_is_no_run_is_told(folder, tmp_path, capsys):
    assert "runs/x" in refused(capsys, "demo", "--run.resume", "--run.output", "runs/x")
    assert "--run.resume expects the folder of the run" in refused(capsys, "--run.resume")
    assert "none/config.json: no such file" in refused(capsys, f"--run.resume={tmp_path / 'none'}")
    message = refused(capsys, "folder", "--run.resume", folder)
    assert f"{folder} is a run of demo, not of folder" in message
    message = refused(capsys, "demo", "--run.output", folder)
    assert f"holds a run: go on with it by `deformvit train --run.resume '{folder}'`" in message
    (folder / CONFIG).unlink()
    assert "no config.json, which says of what run" in refused(capsys, "demo", "--run.resume", folder)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("model", {"name": "hf-hub:somebody/model"}, "config.json: model.name: there is no model"),
        ("model", {"args": {"pretrained": "True"}}, "model.args: dat_nano takes no argument 'pretrained' from a file"),
        ("model", {"args": {"dims": "-" * 100_000 + "1"}}, "model.args.dims: expected"),
        ("data", {"root": "https://somewhere/shards"}, "add --data.root https://somewhere/shards to download"),
    ],
)
def test_a_strangers_run_asks_for_nothing(folder, capsys, section, values, message):
    content = json.loads((folder / CONFIG).read_text())
    content[section] |= values
    (folder / CONFIG).write_text(json.dumps(content))
    assert message in refused(capsys, "--run.resume", folder)
