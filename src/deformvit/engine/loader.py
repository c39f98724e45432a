"""The images of a whole run in an order that nothing but its seed decides: it continues at any step, on any machine.

Every epoch's order comes from (seed, epoch), every image's augmentation from (seed, epoch, image). So neither the
number of processes, of loader workers nor of micro-batches changes what an optimiser step sees, and no state of a
loader needs to be stored.
"""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from deformvit import distributed
from deformvit.config import BaseConfig
from deformvit.engine.runtime import mix, seeded
from deformvit.errors import DataError, UnreadableImage, UserError

Place = tuple[int, int]
"""An epoch, and the index of an image."""
IN_A_ROW = 20
"""Unreadable images one after another that stand for a data set that is not there."""


class Sharing(NamedTuple):
    """How the images of an optimiser step are divided."""

    rank: int
    """Number of this process."""
    size: int
    """Number of processes."""
    accumulate: int
    """Micro-batches of a process."""
    micro: int
    """Images of a micro-batch."""


def sharing(config: BaseConfig) -> Sharing:
    """How this run divides its batches.

    Raises:
        UserError: they cannot be divided evenly.
    """
    batch, size, accumulate = config.data.batch_size, distributed.size(), config.run.accumulate
    if batch % (size * accumulate):
        raise UserError(
            f"data.batch_size is the images of an optimiser step, {batch}: not divisible by {size} processes x "
            f"{accumulate} accumulated batches"
        )
    return Sharing(distributed.rank(), size, accumulate, batch // (size * accumulate))


def steps_per_epoch(images: Dataset[Any], config: BaseConfig) -> int:
    """Optimiser steps of an epoch; whole batches only.

    Raises:
        UserError: not one whole batch.
    """
    count, batch = len(images), config.data.batch_size  # type: ignore[arg-type]
    if count < batch:
        raise UserError(f"{config.data.root}: {count} training images do not fill a batch of {batch}")
    return count // batch


def order(images: Dataset[Any], seed: int, epoch: int) -> torch.Tensor:
    """Indices of all images in the order of an epoch.

    A data set may have a say, ``shuffled(generator)``: one that is read in pieces keeps neighbours together.
    """
    generator = torch.Generator().manual_seed(mix(seed, epoch))
    shuffled: Callable[[torch.Generator], torch.Tensor] | None = getattr(images, "shuffled", None)
    if shuffled is not None:
        return shuffled(generator)
    return torch.randperm(len(images), generator=generator)  # type: ignore[arg-type]


class Order(Sampler[list[Place]]):
    """The micro-batches of this process from one step to another, over the ends of epochs.

    Args:
        images: the data set.
        batch: images of an optimiser step.
        seed: of the run.
        first: the step to begin with.
        last: the step to end before.
        share: which part of every step is this process's.
    """

    def __init__(self, images: Dataset[Any], batch: int, seed: int, first: int, last: int, share: Sharing) -> None:
        self.images, self.batch, self.seed, self.first, self.last, self.share = images, batch, seed, first, last, share

    def __len__(self) -> int:
        return (self.last - self.first) * self.share.accumulate

    def __iter__(self) -> Iterator[list[Place]]:
        steps = len(self.images) // self.batch  # type: ignore[arg-type]
        share = self.share
        current, places = -1, torch.empty(0)
        for step in range(self.first, self.last):
            epoch, number = divmod(step, steps)
            if epoch != current:
                current, places = epoch, order(self.images, self.seed, epoch)
            for part in range(share.accumulate):
                begin = number * self.batch + (part * share.size + share.rank) * share.micro
                yield [(epoch, index) for index in places[begin : begin + share.micro].tolist()]


class _Item(NamedTuple):
    value: Any
    seconds: float
    unreadable: list[str]
    dropped: dict[str, int]


class _Batch(NamedTuple):
    value: Any
    images: int
    seconds: float
    unreadable: list[str]
    dropped: dict[str, int]


class _Seeded(Dataset[_Item]):
    """A data set whose items are drawn from the seed of their place, and timed; the next stands in for a damaged."""

    def __init__(self, images: Dataset[Any], seed: int) -> None:
        self.images, self.seed = images, seed

    def __getitem__(self, place: Place) -> _Item:
        epoch, index = place
        began, unreadable = time.perf_counter(), []
        count = len(self.images)  # type: ignore[arg-type]
        with seeded(mix(self.seed, epoch, index)):
            for attempt in range(min(IN_A_ROW, count)):
                try:
                    value = self.images[(index + attempt) % count]
                    break
                except UnreadableImage as error:
                    unreadable.append(str(error))
            else:
                raise DataError(f"{len(unreadable)} images in a row are unreadable, the first: {unreadable[0]}")
        dropped: Counter[str] | None = getattr(self.images, "dropped", None)
        counts = dict(dropped or {})
        if dropped:
            dropped.clear()
        return _Item(value, time.perf_counter() - began, unreadable, counts)


class _Collate:
    """A task's collation, and what is to be known of the items besides."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: list[_Item]) -> _Batch:
        dropped: Counter[str] = Counter()
        for item in items:
            dropped.update(item.dropped)
        unreadable = [message for item in items for message in item.unreadable]
        value = self.collate([item.value for item in items])
        return _Batch(value, len(items), sum(item.seconds for item in items), unreadable, dict(dropped))


def _start_worker(_number: int) -> None:
    # A scheduler signals whole groups of processes; the images are still needed for the steps until the checkpoint.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class Loader:
    """Micro-batches from a step to the end of the run, and how fast they come.

    Args:
        images: the data set of the whole run.
        collate: items -> batch.
        config: the run.
        first: the step to begin with.
        last: the step to end before.
        pin: lay batches where a GPU fetches them faster.
    """

    def __init__(
        self, images: Dataset[Any], collate: Callable[[list[Any]], Any], config: BaseConfig, first: int, last: int,
        pin: bool = False,
    ) -> None:  # fmt: skip
        data = config.data
        places = Order(images, data.batch_size, config.run.seed, first, last, sharing(config))
        self._loader: DataLoader[Any] = DataLoader(
            _Seeded(images, config.run.seed), batch_sampler=places, num_workers=data.workers,
            collate_fn=_Collate(collate), pin_memory=pin, worker_init_fn=_start_worker,
        )  # fmt: skip
        self.lanes = max(data.workers, 1)
        self.limit = data.max_unreadable
        self.unreadable: set[str] = set()
        self.dropped: Counter[str] = Counter()
        self.images = 0
        self.waited = self.decoded = 0.0

    def __iter__(self) -> Generator[Any, None, None]:
        """The batches. To be closed: its processes ignore SIGTERM, so that Python would wait for them at its end."""
        batches = iter(self._loader)
        try:
            while True:
                began = time.perf_counter()
                batch = next(batches, None)
                if batch is None:
                    return
                self.waited += time.perf_counter() - began
                self.decoded += batch.seconds
                self.images += batch.images
                self.dropped.update(batch.dropped)
                for message in batch.unreadable:
                    self._pass_over(message)
                yield batch.value
        finally:
            del batches  # which ends them; the traceback of an error would keep it

    def _pass_over(self, message: str) -> None:
        if message in self.unreadable:
            return
        self.unreadable.add(message)
        count = len(self.unreadable)
        if count > self.limit:
            raise DataError(f"{message}; more than data.max_unreadable = {self.limit} images cannot be read")
        print(f"deformvit: passed over {message} ({count} so far)", file=sys.stderr)

    def measured(self, seconds: float) -> dict[str, float]:
        """Images a second since the last call, which took so many seconds: of the run, the loader, the model.

        ``loader_images_s`` is what this process's workers could decode if nothing held them up, ``loader_ratio`` that
        over what the model takes if nothing keeps it waiting: below 1, the loader is the bottleneck.
        """
        images, waited, decoded = self.images, self.waited, self.decoded
        self.images, self.waited, self.decoded = 0, 0.0, 0.0
        if not images or seconds <= 0:
            return {}
        if self._loader.num_workers == 0:  # waiting is decoding, and the model's time is the rest
            waited = decoded
        loader, model = self.lanes * images / max(decoded, 1e-9), images / max(seconds - waited, 1e-9)
        return {"images_s": images / seconds, "loader_images_s": loader, "loader_ratio": loader / model}

    def reported(self) -> list[str]:
        """What was left out of images since the last call, a line for each kind."""
        lines = [f"{count} {kind}" for kind, count in sorted(self.dropped.items())]
        self.dropped.clear()
        return lines
