"""Lines of progress where there is no terminal."""

from __future__ import annotations

import pytest

from deformvit import distributed, progress
from deformvit.progress import Progress, duration, track


class Clock:
    """Seconds that pass only when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def told(capsys) -> list[str]:
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err.splitlines()


def test_a_line_a_minute(capsys):
    clock = Clock()
    with Progress("epoch 2/3", 50, "step", done=10, after=60, images=8, clock=clock) as shown:
        due = []
        for step in range(11, 51):
            clock.now += 10.0
            if shown.update():
                due.append(step)
                shown.show(loss=f"{1 / step:.3f}", lr="1.0e-03")
    assert due == [16, 22, 28, 34, 40, 46]
    lines = told(capsys)
    assert len(lines) == 6
    # 8 images in 10 seconds; 34 of this epoch and 60 later steps of 10 seconds
    assert lines[0] == "epoch 2/3, step 16 of 50: loss 0.062, lr 1.0e-03, 0.8 images/s, about 16 min left"
    assert lines[5].endswith(", about 11 min left")


def test_slow_steps_have_a_line_each(capsys):
    clock = Clock()
    with Progress("evaluate", 3, "batch", clock=clock) as shown:
        for _ in range(3):
            clock.now += 90
            assert shown.update()
            shown.show()
    assert told(capsys) == [
        "evaluate, batch 1 of 3: about 3 min left", "evaluate, batch 2 of 3: about 2 min left",
        "evaluate, batch 3 of 3: about 0 s left",
    ]  # fmt: skip


def test_nothing_is_said_within_a_minute_nor_by_other_processes(capsys, monkeypatch):
    assert list(track(range(5), "evaluate", "batch")) == [*range(5)]
    assert told(capsys) == []
    monkeypatch.setattr(progress, "MINUTE", 0.0)
    assert list(track([1, 2], "evaluate", "batch", bar=False)) == [1, 2]
    assert [line.split(":")[0] for line in told(capsys)] == ["evaluate, batch 1 of 2", "evaluate, batch 2 of 2"]
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    assert list(track([1, 2], "evaluate", "batch", bar=False)) == [1, 2]
    assert told(capsys) == []


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (89, "89 s"), (91, "2 min"), (3599, "1 h 0 min"), (3540, "59 min"), (12_000, "3 h 20 min")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words
