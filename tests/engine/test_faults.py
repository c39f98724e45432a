"""What goes wrong in long runs, done for real: killed processes, damaged files, full disks, non-finite losses."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from small_runs import TINY, assert_same_state, lines, run, small, weights, without_times

from deformvit.engine import loop
from deformvit.engine.checkpoint import CheckpointError, Checkpoints
from deformvit.engine.faults import NonFiniteLoss
from deformvit.errors import DataError
from deformvit.tasks.classification import Classification


def command(images, output, *more, epochs=6):
    return [
        sys.executable, "-m", "deformvit", "train", "demo", "--data.root", str(images), "--data.batch-size", "8",
        "--run.epochs", str(epochs), "--run.no-progress", "--augment.hflip", "0", "--model.drop-path-rate", "0.1",
        "--run.output", str(output), *more, "--model.args", *(word for pair in TINY.items() for word in pair),
    ]  # fmt: skip


def started(arguments, output, steps):
    """A running process that has written the checkpoint of a step."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while (Checkpoints(output / "checkpoints").steps() or [0])[0] < steps:
        assert process.poll() is None, f"ended before it was stopped: {process.stderr.read()}"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


SAVE_OFTEN = ("--run.save-minutes", "0.000001")


def test_a_killed_run_resumes_as_if_it_had_not_been_killed(images, tmp_path):
    process = started(command(images, tmp_path / "killed", *SAVE_OFTEN), tmp_path / "killed", steps=9)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 9 <= Checkpoints(tmp_path / "killed" / "checkpoints").steps()[0] < 36

    refused = subprocess.run(command(images, tmp_path / "killed"), capture_output=True, text=True)
    assert refused.returncode == 1
    (proposed,) = re.findall("`deformvit (.*)`", refused.stderr)
    assert proposed == f"train --run.resume {tmp_path / 'killed'}"
    assert "Traceback" not in refused.stderr
    subprocess.run([*command(images, "")[:3], *proposed.split()], check=True, stdout=subprocess.DEVNULL)
    run(small(images, tmp_path / "whole", epochs=6))
    assert_same_state(tmp_path / "whole", tmp_path / "killed")
    assert without_times(lines(tmp_path / "killed")) == without_times(lines(tmp_path / "whole"))
    assert not list((tmp_path / "killed").rglob(".*tmp"))


@pytest.mark.parametrize("workers", [0, 2])
def test_sigterm_writes_a_checkpoint_and_ends(images, tmp_path, workers):
    """As a scheduler sends it, to loader processes too."""
    arguments = command(images, tmp_path / "stopped", "--data.workers", str(workers), *SAVE_OFTEN, epochs=60)
    process = started(arguments, tmp_path / "stopped", steps=9)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    assert len(children) >= workers
    for child in (*children, process.pid):
        os.kill(int(child), signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    stopped = int(stderr.split("stopped after step ")[1].split()[0]) if "after step" in stderr else None
    newest = Checkpoints(tmp_path / "stopped" / "checkpoints").newest()
    assert newest == stopped or "after epoch" in stderr
    assert f"`deformvit train --run.resume {tmp_path / 'stopped'}` goes on" in stderr
    assert "Traceback" not in stderr
    again = started([*arguments[:4], "--run.resume", str(tmp_path / "stopped")], tmp_path / "stopped", newest + 2)
    again.kill()  # it went on
    again.wait()


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "unlisted"])
def test_damaged_checkpoint_falls_back_to_the_one_before(images, tmp_path, damage, capsys):
    for name in ("run", "whole"):
        run(small(images, tmp_path / name, epochs=3))
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    assert checkpoints.steps() == [18, 12]
    folder = checkpoints.path(18)
    file = folder / "__0_0.distcp"
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage == "gone":
        file.unlink()
    else:
        (folder / "files.json").write_text("{}")
    config = small(images, tmp_path / "run", epochs=3)
    config.run.resume = config.run.output
    run(config)
    stderr = capsys.readouterr().err
    assert f"{folder}: damaged" in stderr
    assert "using an earlier one" in stderr
    assert_same_state(tmp_path / "run", tmp_path / "whole")

    for step in checkpoints.steps():
        (checkpoints.path(step) / "state.json").write_text("")
    with pytest.raises(CheckpointError, match="no checkpoint to resume from: .*damaged"):
        run(config)


def test_checkpoints_execute_nothing(images, tmp_path):
    run(small(images, tmp_path / "run", epochs=1))
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    folder = checkpoints.path(6)
    (folder / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match=r"it names .*open, which no checkpoint needs"):
        checkpoints.load(6, {"model.a": torch.zeros(1)})
    assert not (tmp_path / "executed").exists()

    from torch.distributed.checkpoint import save

    shutil.rmtree(folder)
    save({"model.a": torch.zeros(1), "harmless": Evil()}, checkpoint_id=folder)
    with pytest.raises(CheckpointError, match="BytesStorageMetadata, which no checkpoint needs"):
        checkpoints.load(6, {"model.a": torch.zeros(1)})


def test_the_last_checkpoints_are_kept(images, tmp_path):
    config = small(images, tmp_path / "run", epochs=4)
    config.run.keep = 3
    run(config)
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [24, 18, 12]


def full_disk(size):
    """Arguments that run a command with a small disk at a mount point, without being root."""
    return [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        f'mount -t tmpfs -o size={size} none "$0" && exec "$@"',
    ]


def test_a_full_disk_is_reported_and_loses_nothing(images, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if not shutil.which("unshare") or subprocess.run([*full_disk("1m"), disk, "true"], capture_output=True).returncode:
        pytest.skip("needs unshare and user namespaces to mount a small disk")
    kept = tmp_path / "kept"
    script = f'"$@"; code=$?; cp -r {disk} {kept}; exit $code'
    arguments = command(images, disk / "run", epochs=6)
    size = _bytes_of_a_run(images, tmp_path / "measured")
    ended = subprocess.run(
        [*full_disk(f"{int(2.6 * size) // 1024}k"), disk, "sh", "-c", script, "sh", *arguments],
        capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "no space left on the disk" in ended.stderr
    assert "Traceback" not in ended.stderr
    checkpoints = Checkpoints(kept / "run" / "checkpoints")
    assert checkpoints.newest() is not None
    config = small(images, kept / "run", epochs=6)
    config.run.resume = config.run.output
    run(config)  # with room again
    run(small(images, tmp_path / "whole", epochs=6))
    assert_same_state(kept / "run", tmp_path / "whole")


def _bytes_of_a_run(images, folder):
    """What a checkpoint takes."""
    run(small(images, folder, epochs=1))
    (path,) = (folder / "checkpoints").iterdir()
    return sum(file.stat().st_size for file in path.iterdir())


def test_unreadable_images_are_skipped_up_to_a_limit(images, tmp_path, capsys):
    root = tmp_path / "images"
    shutil.copytree(images, root)
    (root / "train" / "left" / "3.png").write_bytes(b"no image")
    (root / "train" / "top" / "5.png").write_bytes((images / "train" / "top" / "5.png").read_bytes()[:60])
    config = small(root, tmp_path / "run", epochs=2)
    config.data.workers = 2
    run(config)
    stderr = capsys.readouterr().err
    for name in ("left/3.png", "top/5.png"):
        assert len(re.findall(f"skipped .*{name}: ", stderr)) == 1  # though every epoch comes by
    assert "(2 so far)" in stderr
    config = small(root, tmp_path / "strict", epochs=2)
    config.data.max_unreadable = 1
    with pytest.raises(DataError, match=r"png: not a readable image .*more than data.max_unreadable = 1"):
        run(config)


def test_unreadable_images_are_left_out_of_the_evaluation(images, tmp_path, capsys):
    damaged, fewer = tmp_path / "damaged", tmp_path / "fewer"
    for root in (damaged, fewer):
        shutil.copytree(images, root)
    for name in ("left/3.png", "top/5.png"):
        (damaged / "val" / name).write_bytes(b"no image")
        (fewer / "val" / name).unlink()
    config = small(damaged, tmp_path / "run", epochs=2)
    config.data.workers, config.data.eval_batch_size = 2, 1  # batches of nothing
    run(config)
    stderr = capsys.readouterr().err
    for name in ("left/3.png", "top/5.png"):
        assert len(re.findall(f"left out of the evaluation: .*{name}: not a readable image", stderr)) == 1
    run(small(fewer, tmp_path / "fewer_run", epochs=2))
    for mine, other in zip(lines(tmp_path / "run"), lines(tmp_path / "fewer_run"), strict=True):
        assert mine["top1"] == other["top1"]
        assert mine["loss"] == pytest.approx(other["loss"])
    config = small(damaged, tmp_path / "strict", epochs=2)
    config.data.max_unreadable = 1
    with pytest.raises(DataError, match=r"more than 1 images of the evaluation cannot be read"):
        run(config)


def test_an_error_ends_the_run_and_its_loader_processes(images, tmp_path):
    (tmp_path / "program.py").write_text(
        "from deformvit.tasks.classification import Classification\n"
        "def evaluate(*_): raise TypeError('a mistake')\n"
        "Classification.evaluate = evaluate\n"
        "from deformvit_command import main\n"
        "main()\n"
    )
    words = command(images, tmp_path / "run", "--data.workers", "2")
    words[1:3] = [str(tmp_path / "program.py")]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=150)
    assert ended.returncode == 1
    assert "TypeError: a mistake" in ended.stderr


def test_a_data_set_without_readable_images_stops_at_once(images, tmp_path):
    root = tmp_path / "images"
    shutil.copytree(images, root)
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"20 images in a row are unreadable, the first: .*png"):
        run(small(root, tmp_path / "run"))


class Broken(Classification):
    """Gives a non-finite loss at some steps."""

    at: tuple[int, ...] = ()
    step = 0

    def losses(self, model, batch, device):
        losses = super().losses(model, batch, device)
        self.step += 1
        return {name: loss * (float("nan") if self.step - 1 in self.at else 1) for name, loss in losses.items()}


def test_a_non_finite_loss_stops_and_is_located(images, tmp_path):
    config = small(images, tmp_path / "run")
    task = Broken(config)
    task.at = (7,)
    with pytest.raises(NonFiniteLoss, match=r"epoch 2, step 2 of 6 \(loss nan; gradient of .* and \d+ more not finite"):
        loop.fit(task, config)
    assert all(value.isfinite().all() for value in weights(tmp_path / "run", "model").values())


def test_a_non_finite_weight_is_named(images, tmp_path):
    config = small(images, tmp_path / "run")

    class Damaged(Classification):
        def build_model(self):
            model = super().build_model()
            model.head.fc.bias.data[0] = float("inf")
            return model

    with pytest.raises(NonFiniteLoss, match=r"step 1 of 6 \(loss nan; weight of head\.fc\.bias not finite"):
        loop.fit(Damaged(config), config)


def test_steps_with_non_finite_losses_can_be_left_out(images, tmp_path, capsys):
    config = small(images, tmp_path / "run", epochs=2)
    config.run = dataclasses.replace(config.run, nonfinite="skip", save_minutes=1e-9, keep=12)
    task = Broken(config)
    task.at = (7,)
    metrics = loop.fit(task, config)
    assert torch.isfinite(torch.tensor(metrics["train_loss"]))
    assert "epoch 2, step 2 of 6" in capsys.readouterr().err
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    names = json.loads((checkpoints.path(7) / "files.json").read_text())
    same = json.loads((checkpoints.path(8) / "files.json").read_text())
    assert names["__0_0.distcp"] == same["__0_0.distcp"]  # weights and moments did not move
    config = small(images, tmp_path / "hopeless")
    config.run.nonfinite = "skip"
    task = Broken(config)
    task.at = tuple(range(100))
    with pytest.raises(NonFiniteLoss, match="11 steps in a row"):
        loop.fit(task, config)
