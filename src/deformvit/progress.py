"""How far long work is: a bar on a terminal; where there is none, or where it is not wanted, a line a minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

from deformvit import distributed

MINUTE = 60.0
"""Seconds between lines."""

T = TypeVar("T")


class Progress:
    """A bar, or lines; of several processes only the first shows anything.

    Args:
        title: what is done.
        total: how many times :meth:`update` is called, what was done before included.
        unit: what is counted, in the singular.
        bar: draw a bar where standard error is a terminal.
        done: how much of the total was done before.
        after: how much follows the total, for the time that is left.
        images: in a unit; 0 does not count them.
        clock: seconds; another one in tests.
    """

    def __init__(
        self, title: str, total: int, unit: str, *, bar: bool = True, done: int = 0, after: int = 0, images: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.title, self.total, self.unit, self.images, self.clock = title, total, unit, images, clock
        self.before = self.done = done
        self.end = total + after
        active = distributed.rank() == 0
        self.bar = tqdm(
            total=total, initial=done, desc=title, unit=unit, leave=False, disable=not (bar and active) or None,
            dynamic_ncols=True, mininterval=0.5,
        )  # fmt: skip
        self.lines = active and bool(self.bar.disable)
        self.began = self.shown = clock()

    def update(self) -> bool:
        """Count one more; returns whether it is time to :meth:`show` something: twice a second, or once a minute."""
        self.done += 1
        if not self.lines:
            return bool(self.bar.update())
        now = self.clock()
        due = now - self.shown >= MINUTE
        self.shown = now if due else self.shown
        return due

    def show(self, **values: str) -> None:
        """Put values, by name, behind the bar or into a line."""
        if not self.lines:
            self.bar.set_postfix(values, refresh=False)
            return
        speed = (self.done - self.before) / max(self.shown - self.began, 1e-9)
        said = [f"{name} {value}" for name, value in values.items()]
        said += [f"{speed * self.images:.3g} images/s"] if self.images else []
        said.append(f"about {duration((self.end - self.done) / speed)} left")
        print(f"{self.title}, {self.unit} {self.done} of {self.total}: {', '.join(said)}", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_error: object) -> None:
        self.bar.close()


def track(batches: Iterable[T], title: str, unit: str, bar: bool = True) -> Iterator[T]:
    """The batches, of known number, one by one."""
    assert isinstance(batches, Sized)
    with Progress(title, len(batches), unit, bar=bar) as progress:
        for batch in batches:
            yield batch
            if progress.update():
                progress.show()


def duration(seconds: float) -> str:
    """Seconds in words: "50 s", "12 min", "3 h 20 min"."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
