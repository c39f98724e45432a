"""Two processes, as torchrun starts them: the same training as in one, sharded or not; and when one dies."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_runs import TINY, assert_same_state, lines, run, small, weights, without_times

from deformvit.engine.checkpoint import Checkpoints

WRAPPER = """
import os, sys, signal
from deformvit.engine import loop
from deformvit.tasks.classification import Classification
losses = Classification.losses
Classification.taken = 0
def dying(self, model, batch, device):
    self.taken += 1
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if os.environ["RANK"] == "1" and first and self.taken == 9:
        {death}
    return losses(self, model, batch, device)
Classification.losses = dying
from deformvit_command import main
main()
"""
"""A command whose second process dies at its ninth step, the first time it is started."""


def torchrun(program, images, output, *more, epochs=2, restarts=0):
    words = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts",
        str(restarts), *program, "train", "demo", "--data.root", str(images), "--data.batch-size", "8", "--run.epochs",
        str(epochs), "--run.no-progress", "--augment.hflip", "0", "--run.output", str(output), *more, "--model.args",
        *(word for pair in TINY.items() for word in pair),
    ]  # fmt: skip
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=250)


@pytest.fixture(scope="module")
def alone(images, tmp_path_factory):
    """The run of one process that others are compared with."""
    folder = tmp_path_factory.mktemp("alone")
    config = small(images, folder / "run", epochs=2)
    config.model.drop_path_rate = 0.0  # drawn for each process
    config.optim.clip_grad = 0.1
    run(config)
    return folder / "run"


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("ddp", ()),
        ("fsdp", ("--run.parallel", "fsdp")),
        pytest.param("accumulated", ("--run.accumulate", "2", "--run.grad-checkpointing"), marks=pytest.mark.slow),
    ],
)
def test_processes_train_as_one_does(images, alone, tmp_path, name, more):
    ended = torchrun(["-m", "deformvit"], images, tmp_path / "run", "--optim.clip-grad", "0.1", *more)
    assert ended.returncode == 0, ended.stderr
    for name in ("model", "optimizer"):
        one, two = weights(alone, name), weights(tmp_path / "run", name)
        assert one.keys() == two.keys()
        for key, value in one.items():
            # Sums in another order: AdamW turns rounding of gradients near 0 into steps of its own size.
            assert (value - two[key]).abs().max() < 2e-3 + 1e-2 * value.abs().max(), key
    first, second = lines(alone), lines(tmp_path / "run")
    assert [row["epoch"] for row in second] == [0, 1]
    assert second[-1]["train_loss"] == pytest.approx(first[-1]["train_loss"], rel=2e-2)
    assert second[-1]["loss"] == pytest.approx(first[-1]["loss"], rel=2e-2)
    assert ended.stdout.count("epoch 1/2") == 1  # one process speaks


def test_one_process_goes_on_where_two_stopped(images, tmp_path):
    """And loads the shards of the model that they wrote."""
    more = ("--run.parallel", "fsdp", "--run.ema", "0.9")
    assert torchrun(["-m", "deformvit"], images, tmp_path / "run", *more, epochs=1).returncode == 0
    before = weights(tmp_path / "run", "model")
    config = small(images, tmp_path / "run", epochs=2)
    config.run.resume = config.run.output
    config.model.drop_path_rate = 0.0
    config.run.ema = 0.9
    run(config)
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [12, 6]
    after = weights(tmp_path / "run", "model")
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert [row["epoch"] for row in lines(tmp_path / "run")] == [0, 1]


def test_a_process_that_dies_ends_the_job_with_its_traceback(images, tmp_path):
    program = tmp_path / "dying.py"
    program.write_text(WRAPPER.format(death="raise RuntimeError('out of luck')"))
    ended = torchrun([program], images, tmp_path / "run", epochs=3)
    assert ended.returncode != 0
    assert re.search(r"line \d+, in dying", ended.stderr)
    assert "out of luck" in ended.stderr


def test_processes_that_torchrun_restarts_go_on(images, tmp_path):
    program = tmp_path / "dying.py"
    died = tmp_path / "died"
    program.write_text(WRAPPER.format(death=f"open({str(died)!r}, 'w').close(); os.kill(os.getpid(), signal.SIGKILL)"))
    again = torchrun([program], images, tmp_path / "again", "--run.save-minutes", "0.000001", epochs=3, restarts=1)
    assert again.returncode == 0, again.stderr
    assert died.exists()  # what torchrun says depends on which process it looks at first
    whole = torchrun(["-m", "deformvit"], images, tmp_path / "whole", epochs=3)
    assert whole.returncode == 0, whole.stderr
    assert_same_state(tmp_path / "again", tmp_path / "whole")
    again, whole = (without_times(lines(tmp_path / name)) for name in ("again", "whole"))
    assert again == [pytest.approx(row) for row in whole]  # losses before the restart are those of both processes


@pytest.mark.slow
def test_an_error_names_batches_that_cannot_be_shared(images, tmp_path: Path):
    ended = torchrun(["-m", "deformvit"], images, tmp_path / "run", "--data.batch-size", "7")
    assert ended.returncode != 0
    assert "7: not divisible by 2 processes x 1 accumulated batches" in ended.stderr
    assert "site-packages/deformvit" not in ended.stderr
