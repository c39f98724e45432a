"""The paper's comparisons as runs at dat_nano's size."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image

from deformvit import UserError, cli
from deformvit.paper import ablate, tables
from deformvit.recipes.ablations import Row, Table
from deformvit.recipes.nano import TABLES

SMALL = {"dims": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2), "groups": 1, "depths": (1, 2, 2, 1)}


@pytest.mark.parametrize("number", TABLES)
def test_rows_are_of_one_size(number):
    """The claim is about attention, not about size."""
    own = ablate.cost(Row("DAT", "dat_nano"), 32)
    for row in TABLES[number].rows:
        parameters, multiply_adds = ablate.cost(row, 32)
        assert parameters == pytest.approx(own[0], rel=0.05), row.label
        assert multiply_adds == pytest.approx(own[1], rel=0.05), row.label


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
    cell = ablate.Cell(Row("DAT", "dat_nano"), 0, tmp_path)
    assert cell.top1(2) is None
    with open(tmp_path / "metrics.jsonl", "w") as file:
        print(json.dumps({"epoch": 0, "top1": 40.0}), file=file, flush=True)
        assert cell.top1(2) is None
        print(json.dumps({"epoch": 1, "top1": 50.0}), file=file, flush=True)
        assert cell.top1(2) == 50.0


def test_cells_run_once_and_fill_the_table(images, tmp_path, monkeypatch, capsys):
    rows = (Row("first, as it is", "dat_nano", SMALL), Row("second", "dat_nano", SMALL | {"offsets": False}))
    monkeypatch.setitem(TABLES, "7", Table("Two rows", rows, "A note."))
    command = [
        "ablate",
        "7",
        "--data",
        str(images),
        "--output",
        str(tmp_path / "runs"),
        "--seeds",
        "2",
        "--epochs",
        "2",
    ]
    cli.main([*command, "--rows", "2"])
    told = capsys.readouterr()
    assert "first" not in told.err
    assert next(line for line in told.out.splitlines() if line.startswith("| first")).endswith("| - | - | - |")
    for folder in (tmp_path / "runs" / "7-2-epochs").glob("second-*"):
        shutil.rmtree(folder)
    cli.main(command)
    told = capsys.readouterr()
    assert [line.removeprefix("deformvit: ") for line in told.err.splitlines() if "seed" in line] == [
        "1 of 4: first, as it is, seed 0", "2 of 4: second, seed 0", "3 of 4: first, as it is, seed 1",
        "4 of 4: second, seed 1",
    ]  # fmt: skip
    folder = tmp_path / "runs" / "7-2-epochs"
    final = {}
    for name in ("first-as-it-is", "second"):
        lines = [(folder / f"{name}-seed{seed}" / "metrics.jsonl").read_text().splitlines()[-1] for seed in (0, 1)]
        final[name] = [json.loads(line)["top1"] for line in lines]
    (row,) = [line for line in told.out.splitlines() if line.startswith("| second")]
    assert f"{sum(final['second']) / 2:.2f}" in row
    assert ", ".join(f"{value:.2f}" for value in final["second"]) in row
    config = json.loads((folder / "second-seed1" / "config.json").read_text())
    assert (config["run"]["seed"], config["model"]["args"]["offsets"]) == (1, "False")
    assert (folder / "table.md").read_text().strip() in told.out
    assert "data, 2 epochs, top-1" in told.out
    cli.main(["table", "7", "--runs", str(tmp_path / "runs")])
    assert row in capsys.readouterr().out
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")

    before = (folder / "second-seed1" / "metrics.jsonl").stat().st_mtime_ns
    cli.main(command)
    assert "of 4" not in capsys.readouterr().err
    assert (folder / "second-seed1" / "metrics.jsonl").stat().st_mtime_ns == before


def test_a_row_that_is_not_there_is_told(capsys):
    with pytest.raises(SystemExit):
        cli.main(["ablate", "main", "--data", "sample", "--rows", "1", "9"])
    assert "there is no row 9; main has 5" in capsys.readouterr().err


def test_the_table_is_there_after_every_run(tmp_path, monkeypatch):
    rows = (Row("first", "dat_nano", SMALL), Row("second", "dat_nano", SMALL))
    monkeypatch.setitem(TABLES, "main", Table("Two rows", rows))
    base = _base()
    base.run.epochs = 1

    def fit(_task, config):
        if "second" in str(config.run.output):
            raise KeyboardInterrupt
        config.run.output.mkdir(parents=True)
        (config.run.output / "metrics.jsonl").write_text('{"epoch": 0, "top1": 61.25}\n')

    monkeypatch.setattr(ablate.loop, "fit", fit)
    monkeypatch.setattr(ablate, "Classification", lambda config: None)
    with pytest.raises(UserError, match="no results of `deformvit ablate main"):
        tables.render("main", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        ablate.run("main", base, 1, tmp_path / "ablate" / "main-1-epochs")
    assert "| 61.25 | - | 61.25 |" in tables.render("main", tmp_path)


def test_seeds_differ(tmp_path):
    base = ablate.configured(ablate.cells(TABLES["main"], 2, tmp_path)[5], _base())
    assert base.run.seed == 1
    assert base.run.output == tmp_path / "dat-seed1"
    assert base.run.resume


def _base():
    from deformvit import recipes

    return recipes.nano_cifar10()
