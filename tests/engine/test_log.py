"""Sums of losses and the log of a run's epochs."""

from __future__ import annotations

import json

import pytest
import torch

from deformvit.engine.log import LossSums, MetricsLog
from deformvit.runs import METRICS, read_metrics


def test_adding_losses_reads_nothing():
    """Tensors of the meta device have no values, so reading one raises."""
    device = torch.device("meta")
    sums = LossSums(device)
    for _ in range(3):
        sums.add({"train_loss": torch.empty((), device=device), "box": torch.empty((), device=device)})
    assert sums.steps == 3
    with pytest.raises(RuntimeError, match="meta"):
        torch.empty((), device=device).item()


def test_sums_survive_json_exactly():
    torch.manual_seed(0)
    values = torch.rand(2, 500) * 1e3
    whole, first, second = (LossSums(torch.device("cpu")) for _ in range(3))
    for step in range(500):
        losses = {"train_loss": values[0, step], **({"box": values[1, step]} if step % 3 else {})}
        whole.add(losses)
        (first if step < 123 else second).add(losses)
        if step == 122:
            sums, steps = first.total()
            second.restore(json.loads(json.dumps(sums)), steps)
    assert second.total() == whole.total()
    assert whole.read()["train_loss"] == sum(values[0].tolist())  # in float64
    assert whole.steps == 500


def test_a_resumed_log_drops_later_epochs_and_truncated_lines(tmp_path):
    kept = [{"epoch": 0, "loss": 0.1 + 0.2}, {"epoch": 1, "loss": float("nan")}]
    text = "".join(json.dumps(entry) + "\n" for entry in kept)
    (tmp_path / METRICS).write_text(text + '{"epoch": 2, "loss": 1.0}\n{"epoch": 3, "lo')
    with MetricsLog(tmp_path, first_epoch=2) as log:
        assert (tmp_path / METRICS).read_text() == text
        log.write(2, {"loss": 0.5})
    assert [entry["loss"] for entry in read_metrics(tmp_path)] == [
        0.1 + 0.2,
        pytest.approx(float("nan"), nan_ok=True),
        0.5,
    ]
    with MetricsLog(tmp_path, active=False) as log:
        log.write(3, {"loss": 0.5})
    assert len(read_metrics(tmp_path)) == 3
    with MetricsLog(tmp_path):
        assert read_metrics(tmp_path) == []
