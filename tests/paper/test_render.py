"""``deformvit table``: which runs are shown, where, and what stands beside them."""

from __future__ import annotations

import json

import pytest

from deformvit import UserError, recipes
from deformvit.config import as_dict
from deformvit.paper.recorded import recorded_runs
from deformvit.paper.render import render, render_table
from deformvit.paper.tables import Column, Row, Table
from deformvit.paper.tables.types import COCO, IMAGENET
from deformvit_command import main

ABLATION = Table(
    "Two rows",
    IMAGENET,
    (
        Row("plain", "dat_nano", results=("80.0",)),
        Row("no position", "dat_nano", {"position": "none", "groups": (1, 1, 2, 2)}, results=("79.0",)),
        Row("elsewhere", results=("81.5",)),
    ),
    image=(32, 32),
)


def record(folder, root, epochs, **model):
    config = {"model": {"name": "dat_nano", "args": {}, **model}, "data": {"root": root}}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in map(json.dumps, epochs)))


def cells(text, label):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {label} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_best_evaluation_of_a_run_is_shown_at_its_row(tmp_path):
    epochs = [{"epoch": 0, "top1": 80.2}, {"epoch": 1, "top1": 79.0}, {"epoch": 2, "train_loss": 1.0}]
    record(tmp_path / "mine", "/data/imagenet", epochs, args={"position": "none", "groups": "[1, 1, 2, 2]"})
    record(tmp_path / "worse", "/data/ILSVRC2012", [{"epoch": 0, "top1": 3.0}], args={"position": "none"})
    text = render_table(ABLATION, recorded_runs(tmp_path))
    assert cells(text, "no position")[-1] == "80.2 (79.0)"
    assert cells(text, "plain")[-1] == "80.0"
    assert "- no position: mine, epoch 1 of 3" in text
    assert "worse" not in text  # other arguments


def test_of_several_runs_the_best_is_shown(tmp_path):
    for name, top1 in (("a", 70.0), ("b", 75.0), ("c", 72.0)):
        record(tmp_path / name, "imagenet-1k", [{"epoch": 0, "top1": top1}])
    text = render_table(ABLATION, recorded_runs(tmp_path))
    assert cells(text, "plain")[-1] == "75.0 (80.0)"
    assert "- plain: b, epoch 1 of 1" in text


@pytest.mark.parametrize("root", ["cifar10", "imagenette", "/data/imagenet100", "sample"])
def test_runs_on_other_data_have_no_place_in_the_columns(root, tmp_path):
    record(tmp_path / "six-steps", root, [{"epoch": 0, "top1": 99.0}])
    text = render_table(ABLATION, recorded_runs(tmp_path))
    assert cells(text, "plain")[-1] == "80.0"
    assert "99" not in text
    name = root.rpartition("/")[2]
    assert f"Runs on other data than ImageNet-1K, not shown above:\n- plain: six-steps on {name}" in text


@pytest.mark.parametrize("root", ["imagenet", "/data/ImageNet-1K/", "ilsvrc_2012", "https://host/imagenet"])
def test_folders_of_imagenet(root):
    assert IMAGENET.is_root(root)


def test_a_cut_last_line_is_skipped(tmp_path):
    record(tmp_path / "killed", "imagenet", [{"epoch": 0, "top1": 61.5}])
    with open(tmp_path / "killed" / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 1, "top1": 9')
    assert cells(render_table(ABLATION, recorded_runs(tmp_path)), "plain")[-1] == "61.5 (80.0)"


@pytest.mark.parametrize(
    "config", ["{", "[]", "{}", '{"model": {"name": "dat_nano", "args": []}, "data": {"root": "i"}}']
)
def test_folders_that_are_not_runs_are_left_out(config, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text(config)
    assert recorded_runs(tmp_path) == []


def test_a_run_of_a_system_is_shown_at_its_schedule(tmp_path):
    table = Table(
        "Two schedules",
        COCO,
        (
            Row("1x", recipe="retinanet-dat-tiny-1x", results=("42.8", "64.4", "45.2")),
            Row("3x", recipe="retinanet-dat-tiny-3x", results=("45.6", "67.2")),
        ),
        (Column("AP", "box_AP"), Column("AP50", "box_AP50"), Column("not measured")),
        image=(64, 64),
    )
    config = as_dict(recipes.ALL["retinanet-dat-tiny-1x"]())
    for folder, root, ap in (("mine", "/data/coco", 41.3), ("small", "/data/nuclei", 90.0)):
        (tmp_path / folder).mkdir()
        config["data"]["root"] = root
        (tmp_path / folder / "config.json").write_text(json.dumps(config))
        lines = [{"epoch": 0, "box_AP": 30.0, "box_AP50": 70.0}, {"epoch": 1, "box_AP": ap, "box_AP50": 60.0}]
        (tmp_path / folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    text = render_table(table, recorded_runs(tmp_path), configurations=True)
    assert cells(text, "1x")[-3:] == ["41.3 (42.8)", "60.0 (64.4)", "45.2"]
    assert cells(text, "3x")[-3:] == ["45.6", "67.2", "-"]
    assert "- 1x: mine, epoch 2 of 2" in text
    assert "- 1x: small on nuclei" in text
    assert "1x: deformvit train retinanet-dat-tiny-1x" in text


def test_costs_are_counted_once_for_each_architecture(monkeypatch):
    from deformvit.paper import render as module

    counted = []
    count = module.row_complexity

    def counting(row, table, **options):
        counted.append((row.label, options))
        return count(row, table, **options)

    monkeypatch.setattr(module, "row_complexity", counting)
    rows = (Row("a", "dat_nano"), Row("b", "dat_nano"), Row("c", "dat_nano", {"blocks": ("reduction",) * 4}))
    text = render_table(Table("Three rows", IMAGENET, rows, image=(32, 32)), [])
    assert counted == [("a", {"activations": False}), ("c", {"activations": False})]
    assert cells(text, "a")[1:] == cells(text, "b")[1:] != cells(text, "c")[1:]


def test_command(capsys, tmp_path):
    main(["table", "7", "--configurations", "--runs", str(tmp_path)])
    out = capsys.readouterr().out
    assert cells(out, "1, 2, 3, 4")[1:] == ["28.39", "28.39", "4.64", "4.64", "127.6", "81.7"]
    assert "1, 2, 3, 4: --model.name dat_tiny --model.args blocks" in out
    with pytest.raises(UserError, match="no table '12'; expected one of 2, 3, 4, 5, 6, 7, 8, 9, fig4, neighbours or"):
        render("12")
    with pytest.raises(UserError, match="no results of `deformvit ablate main"):
        render("main", tmp_path)
