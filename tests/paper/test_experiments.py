"""``deformvit ablate``: comparisons as runs at dat_nano's size."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image

from deformvit import recipes
from deformvit.paper import comparison, experiments
from deformvit.paper.recorded import SeedRun, seed_runs
from deformvit.paper.render import render
from deformvit.paper.tables import NANO_TABLES, Row, Table
from deformvit.paper.tables.types import CIFAR10
from deformvit_command import main

SMALL = {"dims": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2), "groups": 1, "depths": (1, 2, 2, 1)}
ROWS = (Row("first, as it is", "dat_nano", SMALL), Row("second", "dat_nano", SMALL | {"offsets": False}))
TWO_ROWS = Table("Two rows", CIFAR10, ROWS, note="A note.", image=(32, 32))


@pytest.fixture
def images(tmp_path):
    generator = torch.Generator().manual_seed(1)
    for split, count in (("train", 160), ("val", 8)):
        for label, name in enumerate(("dark", "light")):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(count // 2):
                pixels = torch.randint(100 * label, 100 * label + 120, (32, 32), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(tmp_path / "data" / split / name / f"{i}.png")
    return tmp_path / "data"


def test_a_run_that_stopped_early_is_not_finished(tmp_path):
    """Its accuracy in the table would be that of another number of epochs, and nothing would train the rest."""
    run = SeedRun(Row("DAT", "dat_nano"), 0, tmp_path)
    assert run.final_top1(2) is None
    with open(tmp_path / "metrics.jsonl", "w") as file:
        print(json.dumps({"epoch": 0, "top1": 40.0}), file=file, flush=True)
        assert run.final_top1(2) is None
        print(json.dumps({"epoch": 1, "top1": 50.0}), file=file, flush=True)
        assert run.final_top1(2) == 50.0


def test_a_cut_last_line_is_an_unfinished_run(tmp_path):
    """A run killed while it wrote is trained on, and the others' table is written meanwhile."""
    base = recipes.nano_cifar10(2)
    runs = seed_runs(TWO_ROWS, 1, tmp_path)
    for run, end in zip(runs, ("", "\n"), strict=True):
        run.folder.mkdir()
        cut = '{"epoch": 1, "top1": 50.0}' if end else '{"epoch": 1, "top1": 5'
        (run.folder / "metrics.jsonl").write_text(f'{{"epoch": 0, "top1": 40.0}}\n{cut}{end}')
    assert [run.final_top1(2) for run in runs] == [None, 50.0]
    text = comparison.write_comparison(TWO_ROWS, runs, base, tmp_path)
    assert "| - | - | - |" in text
    assert "| 50.00 | - | 50.00 |" in text


def test_runs_are_trained_once_and_fill_the_table(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(NANO_TABLES, "7", TWO_ROWS)
    output = ["--output", str(tmp_path / "runs")]
    command = ["ablate", "7", "--data", str(images), *output, "--seeds", "2", "--epochs", "2"]
    main([*command, "--rows", "2"])
    printed = capsys.readouterr()
    assert "first" not in printed.err
    assert next(line for line in printed.out.splitlines() if line.startswith("| first")).endswith("| - | - | - |")
    for folder in (tmp_path / "runs" / "7-2-epochs").glob("second-*"):
        shutil.rmtree(folder)
    main(command)
    printed = capsys.readouterr()
    assert [line.removeprefix("deformvit: ") for line in printed.err.splitlines() if "seed" in line] == [
        "1 of 4: first, as it is, seed 0", "2 of 4: second, seed 0", "3 of 4: first, as it is, seed 1",
        "4 of 4: second, seed 1",
    ]  # fmt: skip
    folder = tmp_path / "runs" / "7-2-epochs"
    lines = [(folder / f"second-seed{seed}" / "metrics.jsonl").read_text().splitlines()[-1] for seed in (0, 1)]
    final = [json.loads(line)["top1"] for line in lines]
    (row,) = [line for line in printed.out.splitlines() if line.startswith("| second")]
    assert f"{sum(final) / 2:.2f}" in row
    assert ", ".join(f"{value:.2f}" for value in final) in row
    config = json.loads((folder / "second-seed1" / "config.json").read_text())
    assert (config["run"]["seed"], config["model"]["args"]["offsets"]) == (1, "False")
    assert (folder / "table.md").read_text().strip() in printed.out
    assert "data, 2 epochs, top-1" in printed.out
    main(["table", "7", "--runs", str(tmp_path / "runs")])
    assert row in capsys.readouterr().out
    with Image.open(folder / "curves.png") as curves:
        colours = curves.convert("RGB").getcolors(curves.width * curves.height)
    shown = {colour for _, colour in colours}
    assert {(31, 119, 180), (255, 127, 14)} <= shown  # the lines of two rows, Matplotlib's first two colours
    assert (44, 160, 44) not in shown  # there is no third

    before = (folder / "second-seed1" / "metrics.jsonl").stat().st_mtime_ns
    main(command)
    assert "of 4" not in capsys.readouterr().err
    assert (folder / "second-seed1" / "metrics.jsonl").stat().st_mtime_ns == before


def test_an_unknown_row_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["ablate", "main", "--data", "sample", "--rows", "1", "9"])
    assert stop.value.code == 1
    assert "rows must be from 1 to 5 for main, got 9" in capsys.readouterr().err


def test_the_table_is_written_after_every_run(tmp_path, monkeypatch):
    monkeypatch.setitem(NANO_TABLES, "main", TWO_ROWS)

    def fit(_task, config):
        if "second" in str(config.run.output):
            raise KeyboardInterrupt
        config.run.output.mkdir(parents=True)
        (config.run.output / "metrics.jsonl").write_text('{"epoch": 0, "top1": 61.25}\n')

    monkeypatch.setattr(experiments, "fit", fit)
    monkeypatch.setattr(experiments, "Classification", lambda config: None)
    command = ["ablate", "main", "--data", "cifar10", "--output", str(tmp_path / "ablate"), "--seeds", "1"]
    with pytest.raises(SystemExit, match="130"):
        main([*command, "--epochs", "1"])
    assert "| 61.25 | - | 61.25 |" in render("main", tmp_path)


def test_seeds_differ(tmp_path):
    run = seed_runs(NANO_TABLES["main"], 2, tmp_path)[5]
    config = experiments.run_config(run, recipes.nano_cifar10())
    assert config.run.seed == 1
    assert config.run.output == tmp_path / "dat-seed1"
    assert config.run.resume == config.run.output
