"""The paper's tables: every row can be built, and the printed digits come out or the row says why not."""

from __future__ import annotations

import json
import shlex

import pytest
import timm
import torch

import deformvit  # noqa: F401 - registers the models
from deformvit import UserError, cli
from deformvit.paper import systems as dense_tables
from deformvit.paper import tables
from deformvit.paper.complexity import measure
from deformvit.recipes.ablations import TABLES
from deformvit.recipes.published import DENSE_TABLES
from deformvit.tasks.classification import parse_args

ROWS = [(key, row) for key, table in TABLES.items() for row in table.rows if row.model]
OURS = [
    pytest.param(row, id=f"{key}: {row.label}", marks=pytest.mark.slow if "384" in row.label else ())
    for key, row in ROWS
    if key != "fig4"
]


@pytest.mark.parametrize("row", OURS)
def test_published_digits_or_a_reason(row):
    cost = tables.cost(row)
    wrong = []
    if tables.differs(cost.parameters / 1e6, row.params):
        wrong.append(f"{cost.parameters / 1e6} M parameters, published {row.params}")
    if tables.differs(cost.multiply_adds / 1e9, row.flops):
        wrong.append(f"{cost.multiply_adds / 1e9} G, published {row.flops}")
    assert bool(row.note) == bool(wrong), wrong or f"needless note: {row.note}"


def test_rival_costs_what_the_paper_says():
    """Table 8: as many keys as DAT take 2.6 times the memory and 1.3 times the multiply-adds."""
    _, rival, dat = (tables.cost(row) for row in TABLES["8"].rows)
    assert round(rival.activations / dat.activations, 1) == 2.6
    assert round(rival.multiply_adds / dat.multiply_adds, 1) == 1.3


@pytest.mark.parametrize(("key", "row"), [(k, r) for k, r in ROWS if k in ("6", "7", "8", "9", "neighbours")])
def test_rows_compute(key, row):
    small = {"dims": (8, 16, 32, 64), "num_heads": (2, 2, 4, 4), "groups": (1, 1, 2, 2), "depths": (2, 2, 2, 2)}
    model = timm.create_model(row.model, num_classes=3, **{**row.args, **small}).train()
    model(torch.randn(2, 3, 64, 96)).square().sum().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize(("key", "row"), ROWS)
def test_options_of_train_are_the_row(key, row):
    name, _, values = tables.arguments(row).partition(" --model.args ")
    assert name == f"--model.name {row.model}"
    words = shlex.split(values)
    assert parse_args(dict(zip(words[::2], words[1::2], strict=True))) == row.args


def test_counting_by_hand():
    """One linear layer, one convolution, one norm, one sampling: what the counter must say."""
    from deformvit.layers import ChannelNorm
    from deformvit.ops import grid

    class Toy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
            self.norm = ChannelNorm(8)
            self.linear = torch.nn.Linear(8, 5)

        def forward(self, x):
            x = self.norm(self.conv(x))
            points = grid.reference_points((3, 4), device=x.device)[None]
            return self.linear(grid.sample(x, points).movedim(1, -1))

    cost = measure(Toy, (3, 6, 10))
    assert cost.parameters == 3 * 8 * 9 + 16 + 8 * 5 + 5
    assert cost.products == 60 * 3 * 9 * 8 + 12 * 8 * 5
    assert cost.norms == 5 * 60 * 8
    assert cost.sampling == 4 * 12 * 8
    assert cost.multiply_adds == cost.products + cost.norms + cost.sampling


def test_neighbourhoods_are_counted_as_defined():
    from deformvit.layers import NeighborhoodAttention
    from deformvit.ops import neighborhood

    cost = measure(lambda: NeighborhoodAttention(8, 2, 7), (8, 20, 30))
    assert cost.products == 600 * (8 * 24 + 2 * 49 * 8 + 8 * 8)
    assert neighborhood.TILE > 1  # the counting is over


def test_recorded_runs_are_shown(tmp_path):
    run = tmp_path / "mine"
    run.mkdir()
    config = {
        "model": {"name": "dat_tiny", "args": {"blocks": "('window shifted',) * 3"}},
        "data": {"root": "/data/imagenet"},
    }
    config["model"]["args"] = {"position": "none"}
    (run / "config.json").write_text(json.dumps(config))
    (run / "metrics.jsonl").write_text('{"epoch": 0, "top1": 80.25}\n{"epoch": 1, "top1": 79.0}\n')
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{")
    lines = tables.render("6", tmp_path).splitlines()
    shown = [line for line in lines if "80.2 (imagenet, 2 epochs)" in line]
    assert [line.split("|")[1].strip() for line in shown] == ["shifted window, offsets, no position"]


def test_command(capsys):
    cli.main(["table", "7", "--configurations"])
    out = capsys.readouterr().out
    assert "| 1, 2, 3, 4 " in out
    assert "--model.args blocks" in out
    with pytest.raises(UserError, match="no table '12'; there are 2, 3, 4, 5, 6, 7, 8, 9, fig4, neighbours"):
        tables.render("12")


@pytest.mark.parametrize("number", ["3", "4", "5"])
def test_systems_have_the_published_size(number):
    """Parameters print as published; multiply-adds come out with keys at every second row and column."""
    table = DENSE_TABLES[number]
    seen = set()
    for row in table.rows:
        if not row.recipe or row.recipe[:-3] in seen:
            continue
        seen.add(row.recipe[:-3])
        plain, strided = dense_tables.cost(row, table), dense_tables.cost(row, table, dense_tables.STRIDE)
        assert plain.parameters == strided.parameters
        known = {"Semantic FPN DAT-B": "91"}  # the paper prints 92; ours has 91.35 M
        assert f"{plain.parameters / 1e6:.0f}" == known.get(row.label, row.params)
        assert strided.multiply_adds < plain.multiply_adds
        if "Semantic" not in row.label:
            assert strided.multiply_adds / 1e9 == pytest.approx(float(row.flops), rel=0.02), row.label


def test_a_recorded_run_is_shown_beside_the_published_value(tmp_path):
    run = tmp_path / "retinanet_dat_tiny_1x"
    run.mkdir()
    (run / "metrics.jsonl").write_text(
        '{"epoch": 0, "box_AP": 30.0}\n{"epoch": 1, "box_AP": 41.25, "box_AP50": 60.0}\n'
    )
    text = tables.render("3", tmp_path)
    assert "41.2 (42.8)" in text
    assert "60.0 (64.4)" in text
    assert "AP75" in text
    assert "deformvit train retinanet-dat-tiny-1x" in tables.render("3", None, configurations=True)
