"""``deformvit bench``: measuring in subprocess workers, and the reports."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from deformvit.bench import attention, explain, models, report, run_attention, run_models, run_systems, systems
from deformvit.bench.measure import seconds, summary
from deformvit.bench.worker import Worker
from deformvit.errors import UserError
from deformvit.ops.deformable import IMPLEMENTATIONS
from deformvit.ops.native import library
from deformvit_command import main

ATTENTION_NAMES = ["no bias", "released", "reference", "tiled"]


@pytest.fixture(scope="module")
def measured():
    return run_attention(("T",), [(32, 48), (64, 48)], ATTENTION_NAMES, rounds=1)


def test_attention_is_measured(measured):
    cases = [(row["image"], row["tokens"], row["name"]) for row in measured["rows"]]
    assert cases == [
        (image, tokens, name) for image, tokens in (([32, 48], 6), ([64, 48], 12)) for name in ATTENTION_NAMES
    ]
    for row in measured["rows"]:
        assert 0 < row["forward"]["seconds"] < 10
        assert 0 < row["backward"]["seconds"] < 10
        assert 0 <= row["forward"]["mib"] <= row["backward"]["mib"] < 1000
    assert measured["machine"]["torch"] == torch.__version__
    assert measured["settings"] == {"batch": 1, "dtype": "float32", "rounds": 1, "backward": True}


def test_time_and_memory_are_those_of_the_measured_call():
    assert 0.05 <= seconds(lambda: time.sleep(0.05), torch.device("cpu")) < 1
    case = {"model": "T", "image": (512, 512), "heads": 12, "groups": 3}
    job = {"case": case, "name": "reference", "compiled": False, "batch": 1, "dtype": "float32", "device": "cpu"}
    large = torch.ones(2**29)  # 2 GiB in this process must not count for the worker
    with Worker(attention.start_worker, {**job, "backward": False, "rounds": 1}) as worker:
        matrix_mib = 12 * 1024**2 * 4 / 2**20  # of one of several matrices of queries and keys
        assert matrix_mib < worker.request("measure")["forward"]["mib"] < 12 * matrix_mib
    assert large.numel() == 2**29


def test_baselines_compute_the_same():
    """The released formulation is the operation itself, not something cheaper; "no bias" is not."""
    case = attention.Case("T", (48, 80), *attention.WIDTHS["T"])
    tensors, hw = attention.inputs(case, 2, torch.float32, torch.device("cpu"))
    expected = attention.implementation("reference")(*tensors, query_hw=hw)
    released = attention.implementation("released")(*tensors, query_hw=hw)
    torch.testing.assert_close(released, expected, rtol=1e-4, atol=1e-5)
    assert (attention.implementation("no bias")(*tensors, query_hw=hw) - expected).abs().max() > 0.1


def cost(seconds, mib):
    return {"seconds": seconds, "mib": mib}


REPORT = {
    "kind": "attention",
    "machine": {"device": "a processor", "threads": 2, "torch": "2.9"},
    "settings": {"dtype": "float32", "batch": 1, "rounds": 3, "backward": True},
    "rows": [
        {"model": "T", "image": [h, 512], "tokens": 2 * h, "name": name, "forward": cost(*f), "backward": cost(*b)}
        for h, name, f, b in (
            (512, "no bias", (0.002, 2), (0.004, 4)), (512, "reference", (0.04, 100), (0.08, 200)),
            (512, "cpu", (0.01, 5), (0.016, 10)), (1024, "cpu", (0.02, 20), (0.04, 0)),
        )
    ],
}  # fmt: skip


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_table_of_attention():
    text = report.table(REPORT)
    assert text.splitlines()[0] == "a processor, 2 threads, torch 2.9, float32, batch 1, median of 3"
    head, _, no_bias, reference, cpu, alone = cells(text)
    assert head[3:8] == ["forward (ms)", "x reference", "x no bias", "MiB", "of reference"]
    assert no_bias[:3] == ["T", "512 x 512", "no bias"]
    assert no_bias[3:] == ["2", "20.00", "1.00", "2", "2.0%", "4", "20.00", "1.00", "4", "2.0%"]
    assert reference[3:8] == ["40", "1.00", "0.05", "100", "100.0%"]
    assert cpu[3:] == ["10", "4.00", "0.20", "5", "5.0%", "16", "5.00", "0.25", "10", "5.0%"]
    assert alone[3:] == ["20", "", "", "20", "", "40", "", "", "0", ""]  # nothing of this size to compare with
    assert "- cpu, forward: memory grows as tokens to the power 2.00" in text
    assert "- cpu, forward + backward" not in text


def test_table_of_models():
    rows = [
        {"model": name, "image": [224, 224], "seconds": s, "fastest": s / 2, "slowest": 2 * s, "mib": 400.4,
         "parameters": 28_300_000}
        for name, s in (("swin_tiny_patch4_window7_224", 0.4), ("dat_tiny", 0.6))
    ]  # fmt: skip
    rows.append({"model": "dat_base", "image": [224, 224], "error": "MemoryError"})
    settings = {"dtype": "float32", "batch": 4, "rounds": 3, "backward": False, "features": True, "compiled": False}
    text = report.table({**REPORT, "kind": "models", "settings": settings, "rows": rows})
    assert text.splitlines()[0].endswith("median of 3, forward, features")
    _, _, _, dat, failed = cells(text)
    assert dat == ["dat_tiny", "224 x 224", "28.3", "150.0", "75.0", "300.0", "1.50", "400"]
    assert failed == ["dat_base", "224 x 224", "MemoryError", "", "", "", "", ""]


def test_reports_are_written(measured, tmp_path):
    paths = report.write(measured, tmp_path)
    assert [path.name for path in paths] == ["attention.json", "attention.md", "attention.png"]
    assert json.loads(paths[0].read_text()) == measured
    assert paths[1].read_text() == report.table(measured) + "\n"
    with Image.open(paths[2]) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[:2] == tuple(round(150 * inches) for inches in (3.6 * 2 + 0.5, 9.6))
    for name in ATTENTION_NAMES[1:]:  # the legend at least
        colour = np.array([int(report.COLOURS[name][i : i + 2], 16) for i in (1, 3, 5)])
        assert (np.abs(pixels.astype(int) - colour).max(-1) < 8).sum() > 50, name


def test_lines_of_the_figure():
    """What is drawn are the numbers of the rows; 0 MiB is left out."""
    figure = report.draw(REPORT)
    (time_axis, memory), (_, memory_backward) = np.reshape(figure.axes, (2, 2))
    drawn = {line.get_label(): np.transpose(line.get_data()).tolist() for line in time_axis.lines}
    assert drawn["cpu"] == [[1024, 10], [2048, 20]]
    assert drawn["reference"] == [[1024, 40]]
    lines = {line.get_label(): line.get_data() for line in memory.lines}
    assert list(lines["cpu"][1]) == [5, 20]
    assert [list(line.get_ydata()) for line in memory_backward.lines if line.get_label() == "cpu"] == [[10]]


def test_without_matplotlib_the_figure_is_left_out(measured, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert [path.name for path in report.write(measured, tmp_path)] == ["attention.json", "attention.md"]


def test_exponent_of_known_growth():
    rows = [{"tokens": n, "forward": {"mib": 0.001 * n**2}} for n in (100, 400, 900)]
    assert report.memory_exponent(rows) == pytest.approx(2)
    linear = [{"tokens": n, "forward": {"mib": 7.0 * n}} for n in (100, 400)]
    assert report.memory_exponent(linear) == pytest.approx(1)
    assert report.memory_exponent(rows[:1]) is None


def test_summary_leaves_out_the_warm_up():
    times = [{"seconds": s} for s in (9.0, 8.0, 1.0, 4.0, 2.0)]
    assert summary(times, 2) == {"seconds": 2.0, "fastest": 1.0, "slowest": 4.0}
    assert summary([*times, {"error": "killed"}], 2) == {"error": "killed"}


def test_models_are_measured():
    result = run_models(["dat_nano", "resnet10t"], [(32, 48)], batch=2, rounds=2, backward=True)
    assert [row["model"] for row in result["rows"]] == ["dat_nano", "resnet10t"]
    for row in result["rows"]:
        assert row["parameters"] == sum(p.numel() for p in timm.create_model(row["model"]).parameters())
        assert 0 < row["fastest"] <= row["seconds"] <= row["slowest"]
        assert 100 < row["mib"] < 4000
    assert "| dat_nano | 32 x 48 |" in report.table(result)


def test_feature_maps_are_measured(tmp_path, capsys):
    main(["bench", "models", "--models", "dat_nano", "--sizes", "32", "--batch", "1", "--rounds", "1",
              "--features", "-o", str(tmp_path)])  # fmt: skip
    assert "median of 1, forward, features" in capsys.readouterr().out
    result = json.loads((tmp_path / "models.json").read_text())
    backbone = timm.create_model("dat_nano", features_only=True)
    assert result["rows"][0]["parameters"] == sum(p.numel() for p in backbone.parameters())
    assert result["settings"]["features"] is True
    job = {"name": "dat_nano", "size": [32, 48], "features": True, "batch": 2, "dtype": "float32", "device": "cpu"}
    shapes = []
    run = models.ModelRun({**job, "backward": False, "compiled": False})
    run.model.register_forward_hook(lambda _, __, out: shapes.extend(tuple(x.shape) for x in out))
    run()
    assert shapes == [tuple(x.shape) for x in backbone(torch.randn(2, 3, 32, 48))]


@pytest.mark.parametrize("backward", [False, True])
def test_models_are_compiled(backward, monkeypatch):
    compiled = []
    compile_ = torch.compile

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda model: compile_(model, backend=backend))
    torch._dynamo.reset()
    job = {"name": "dat_nano", "size": [32, 32], "features": False, "batch": 1, "dtype": "float32", "device": "cpu"}
    run = models.ModelRun({**job, "backward": backward, "compiled": False})
    run()
    assert not compiled
    run = models.ModelRun({**job, "backward": backward, "compiled": True})
    run()
    assert compiled


def test_compiled_attention_is_a_row_of_its_own(tmp_path, capsys):
    main(["bench", "--models", "T", "--sizes", "32", "--implementations", "no bias", "reference", "--rounds", "1",
              "--forward-only", "--compiled", "-o", str(tmp_path)])  # fmt: skip
    rows = json.loads((tmp_path / "attention.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["no bias", "reference", "reference, compiled"]
    assert all(row["forward"]["seconds"] > 0 and "backward" not in row for row in rows), rows
    assert "| reference, compiled |" in capsys.readouterr().out


def test_compiled_models_from_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")  # in the worker: compiling a model takes a minute
    main(["bench", "models", "--models", "dat_nano", "--sizes", "32", "--batch", "1", "--rounds", "1",
              "--compiled", "-o", str(tmp_path)])  # fmt: skip
    result = json.loads((tmp_path / "models.json").read_text())
    assert result["settings"]["compiled"] is True
    assert result["rows"][0]["seconds"] > 0, result["rows"]


def test_what_fails_is_a_row_not_the_end():
    result = run_attention(("T",), [(32, 32)], ["triton", "no bias"], rounds=1, backward=False)
    failed, fine = result["rows"]
    if not torch.cuda.is_available():
        assert "impl='triton' cannot run" in failed["error"]
        assert "impl='triton' cannot run" in report.table(result)
    assert fine["forward"]["seconds"] > 0


def test_workers_say_why_they_ended():
    with Worker(models.start_worker, {}) as worker:
        assert worker.request("time") == {"error": "KeyError: 'device'"}
        assert worker.request("time") == {"error": "KeyError: 'device'"}
    job = {"name": "dat_nano", "size": [32, 32], "features": False, "batch": 1, "dtype": "float32", "device": "cpu"}
    with Worker(models.start_worker, {**job, "backward": False, "compiled": False}) as worker:
        assert worker.request("time")["seconds"] > 0
        os.kill(worker._process.pid, signal.SIGKILL)
        assert worker.request("time") == {"error": f"killed by signal {signal.SIGKILL.value}"}
        pid = worker._process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_worker_ends_with_its_block():
    with Worker(models.start_worker, {}) as worker:
        process = worker._process
        assert process.poll() is None
    assert process.returncode == -signal.SIGKILL


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
        (["--models", "C"], "expected T or B, got 'C'"),
        (["--implementations", "cuda"], "unknown implementation 'cuda'; expected some of no bias, released, reference"),
        (["--device", "tpu9"], "device 'tpu9' cannot be used"),
        (["--rounds", "-1"], "rounds must be at least 1, got -1"),
        (["--batch", "0"], "batch must be at least 1, got 0"),
        (["models", "--models", "no_such_net"], "unknown model 'no_such_net'"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", *arguments])
    assert end.value.code == 1
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_here():
    with pytest.raises(UserError, match="device 'cuda' cannot be used"):
        run_models(["dat_nano"], device="cuda")


def test_command(tmp_path, capsys):
    main(["bench", "--models", "T", "--sizes", "32x48", "--implementations", "no bias", "--rounds", "1",
              "-o", str(tmp_path)])  # fmt: skip
    out = capsys.readouterr().out
    assert "| T | 32 x 48 | no bias |" in out
    assert out.split()[-3:] == [str(tmp_path / f"attention.{kind}") for kind in ("json", "md", "png")]
    main(["bench", "--explain"])
    assert "impl='auto' takes" in capsys.readouterr().out


def test_systems_are_measured_with_both_kinds_of_attention():
    measured = run_systems(("dat_nano",), [(40, 56)], systems=("retinanet", "upernet"), rounds=1, device="cpu")
    labels = [row["model"] for row in measured["rows"]]
    assert labels == [f"{s} dat_nano, {a}" for s in ("retinanet", "upernet") for a in ("auto", "reference")]
    assert all(row["seconds"] > 0 and row["mib"] > 100 for row in measured["rows"]), measured["rows"]
    assert "retinanet dat_nano, reference" in report.table(measured)
    with pytest.raises(UserError, match="unknown system 'yolo'; expected some of retinanet, "):
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
    systems.SystemRun({**job, "size": (40, 64), "attention": "reference"})()
    assert calls["reference"] >= 4
    assert calls["other"] == 0
    before = calls["reference"]
    systems.SystemRun({**job, "size": (40, 64), "attention": "auto"})()
    assert calls == {"reference": before, "other": before}
