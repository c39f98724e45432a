"""``deformvit bench``: measuring in processes of their own, and the reports."""

from __future__ import annotations

import json

import pytest
import timm
import torch

from deformvit import cli
from deformvit.bench import attention, explain, process, report, run_attention, run_models, run_systems, systems
from deformvit.errors import UserError
from deformvit.ops.deformable import IMPLEMENTATIONS
from deformvit.ops.native import library


@pytest.fixture(scope="module")
def measured():
    return run_attention(("T",), [(32, 48), (64, 48)], ["no bias", "released", "reference", "tiled"], rounds=1)


def test_attention_is_measured(measured):
    assert [(row["image"], row["name"]) for row in measured["rows"]][:4] == [
        ([32, 48], name) for name in ("no bias", "released", "reference", "tiled")
    ]
    for row in measured["rows"]:
        assert row["tokens"] == row["image"][0] * row["image"][1] // 256
        for which in ("forward", "backward"):
            assert row[which]["seconds"] > 0
            assert row[which]["mib"] >= 0
    assert measured["machine"]["torch"] == torch.__version__


def test_baselines_compute_the_same():
    """The released formulation is the operation itself, not something cheaper; "no bias" is not."""
    case = attention.Case("T", (48, 80), *attention.WIDTHS["T"])
    tensors, hw = attention.inputs(case, 2, torch.float32, torch.device("cpu"))
    expected = attention.attention("reference")(*tensors, query_hw=hw)
    torch.testing.assert_close(attention.attention("released")(*tensors, query_hw=hw), expected, rtol=1e-4, atol=1e-5)
    assert (attention.attention("no bias")(*tensors, query_hw=hw) - expected).abs().max() > 0.1


def test_reports(measured, tmp_path):
    paths = report.write(measured, tmp_path)
    assert [path.name for path in paths] == ["attention.json", "attention.md", "attention.png"]
    assert json.loads(paths[0].read_text()) == measured
    lines = paths[1].read_text().splitlines()
    assert "float32, batch 1, median of 1" in lines[0]
    reference = next(line for line in lines if "| reference |" in line).split("|")
    assert reference[5].strip() == "1.00"
    assert paths[2].read_bytes()[:4] == b"\x89PNG"


def test_slope_of_known_growth():
    rows = [{"tokens": n, "forward": {"mib": 0.001 * n**2}} for n in (100, 400, 900)]
    assert report.slope(rows) == pytest.approx(2)
    assert report.slope([{"tokens": n, "forward": {"mib": 7.0 * n}} for n in (100, 400)]) == pytest.approx(1)
    assert report.slope(rows[:1]) is None


def test_models_are_measured(tmp_path):
    result = run_models(["dat_nano"], [(32, 48)], batch=2, rounds=1, backward=True)
    (row,) = result["rows"]
    assert row["parameters"] == sum(p.numel() for p in timm.create_model("dat_nano").parameters())
    assert row["fastest"] <= row["seconds"] <= row["slowest"]
    assert row["mib"] > 100
    assert "| dat_nano | 32 x 48 |" in report.table(result)
    assert report.write(result, tmp_path)[-1].name == "models.png"


def test_what_fails_is_a_row_not_the_end():
    result = run_attention(("T",), [(32, 32)], ["triton", "no bias"], rounds=1, backward=False)
    failed, fine = result["rows"]
    if not torch.cuda.is_available():
        assert "impl='triton' cannot run" in failed["error"]
        assert "impl='triton' cannot run" in report.table(result)
    assert fine["forward"]["seconds"] > 0
    assert "No module named" in process.apart("no.such.module", {})["error"]


def test_explanation(monkeypatch):
    text = explain()
    for name in ("reference", "tiled", "cpu", "triton"):
        assert f"  {name} " in text
    assert "800 x 1344" in text
    monkeypatch.setattr(library, "MISSING", "the CPU kernels were not compiled")
    text = explain("cpu")
    assert "cpu        cannot run: the CPU kernels were not compiled" in text
    assert "tiled: cpu cannot run: the CPU kernels were not compiled" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "12y3"], "expected a side or HEIGHTxWIDTH, such as 224 or 800x1344, got '12y3'"),
        (["--sizes", "100"], "multiples of 16, got 100 x 100"),
        (["--models", "C"], "T and B; got 'C'"),
        (["--implementations", "cuda"], "unknown implementation 'cuda'; expected some of no bias, released, reference"),
        (["--device", "tpu9"], "unknown device 'tpu9'"),
        (["--rounds", "-1"], "got 0 and -1"),
        (["models", "--models", "no_such_net"], "timm knows no model 'no_such_net'"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_here():
    with pytest.raises(UserError, match="there is no CUDA device here"):
        run_models(["dat_nano"], device="cuda")


def test_command(tmp_path, capsys):
    cli.main(
        [
            "bench",
            "--models",
            "T",
            "--sizes",
            "32x48",
            "--implementations",
            "no bias",
            "--rounds",
            "1",
            "-o",
            str(tmp_path),
        ]
    )
    assert "| T | 32 x 48 | no bias |" in capsys.readouterr().out
    assert (tmp_path / "attention.png").exists()
    cli.main(["bench", "--explain"])
    assert "impl='auto' takes" in capsys.readouterr().out


def test_systems_are_measured_with_and_without_kernels(tmp_path):
    measured = run_systems(("dat_nano",), [(40, 56)], systems=("retinanet", "upernet"), rounds=1, device="cpu")
    labels = [row["model"] for row in measured["rows"]]
    assert labels == [f"{s} dat_nano, {a}" for s in ("retinanet", "upernet") for a in ("auto", "reference")]
    assert all(row["seconds"] > 0 and row["mib"] > 0 for row in measured["rows"]), measured["rows"]
    assert "retinanet dat_nano, reference" in report.table(measured)
    with pytest.raises(UserError, match="no system 'yolo'"):
        run_systems(systems=("yolo",))


@pytest.mark.parametrize("system", ["mask_rcnn", "semantic_fpn"])
def test_systems_run_with_the_attention_that_is_asked_for(system, monkeypatch):
    calls = {"reference": 0, "other": 0}
    for name, function in list(IMPLEMENTATIONS.items()):

        def counted(*arguments, _function=function, _name=name if name == "reference" else "other", **named):
            calls[_name] += 1
            return _function(*arguments, **named)

        monkeypatch.setitem(IMPLEMENTATIONS, name, counted)
    job = {"device": "cpu", "dtype": "float32", "backward": True, "name": "dat_nano", "system": system}
    systems.Run({**job, "size": (40, 64), "attention": "reference"})()
    assert calls["reference"] >= 4
    assert calls["other"] == 0
    before = calls["reference"]
    systems.Run({**job, "size": (40, 64), "attention": "auto"})()
    assert calls == {"reference": before, "other": before}
