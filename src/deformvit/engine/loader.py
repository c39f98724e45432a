"""The images of a whole run in an order that only its seed decides: it continues at any step, on any machine.

Every epoch's order comes from (seed, epoch), every image's augmentation from (seed, epoch, image). So the numbers of
processes, loader workers and micro-batches do not change the images of an optimiser step, and no state of a loader
needs to be stored.
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

SampleKey = tuple[int, int]
"""An epoch and the index of an image in the data set."""
MAX_CONSECUTIVE_UNREADABLE = 20
"""Unreadable images in a row after which the data set is considered missing or damaged."""


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
        UserError: the images do not fill one batch.
    """
    count, batch = len(images), config.data.batch_size  # type: ignore[arg-type]
    if count < batch:
        raise UserError(f"{config.data.root}: {count} training images do not fill a batch of {batch}")
    return count // batch


def epoch_order(images: Dataset[Any], seed: int, epoch: int) -> torch.Tensor:
    """Indices of all images in the order of an epoch.

    A data set with a method ``shuffled(generator)`` gives the order itself: one of shards keeps neighbours close.
    """
    generator = torch.Generator().manual_seed(mix(seed, epoch))
    shuffled: Callable[[torch.Generator], torch.Tensor] | None = getattr(images, "shuffled", None)
    if shuffled is not None:
        return shuffled(generator)
    return torch.randperm(len(images), generator=generator)  # type: ignore[arg-type]


class MicroBatches(Sampler[list[SampleKey]]):
    """The micro-batches of this process from one step to another, across epochs.

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

    def __iter__(self) -> Iterator[list[SampleKey]]:
        steps = len(self.images) // self.batch  # type: ignore[arg-type]
        share = self.share
        current, indices = -1, torch.empty(0)
        for step in range(self.first, self.last):
            epoch, number = divmod(step, steps)
            if epoch != current:
                current, indices = epoch, epoch_order(self.images, self.seed, epoch)
            for part in range(share.accumulate):
                begin = number * self.batch + (part * share.size + share.rank) * share.micro
                yield [(epoch, index) for index in indices[begin : begin + share.micro].tolist()]


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
    """Items with random numbers seeded by their key, and timed. The next image replaces one that cannot be read."""

    def __init__(self, images: Dataset[Any], seed: int) -> None:
        self.images, self.seed = images, seed

    def __getitem__(self, key: SampleKey) -> _Item:
        epoch, index = key
        began, unreadable = time.perf_counter(), []
        count = len(self.images)  # type: ignore[arg-type]
        with seeded(mix(self.seed, epoch, index)):
            for attempt in range(min(MAX_CONSECUTIVE_UNREADABLE, count)):
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
    """A task's collation, and the sums of what was measured of the items."""

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
    # A scheduler sends SIGTERM to all processes of a job; the loader's are needed until the checkpoint is written.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class Loader:
    """Micro-batches from a step to the end of the run, and measurements of their speed.

    Args:
        images: the data set of the whole run.
        collate: items -> batch.
        config: the run.
        first: the step to begin with.
        last: the step to end before.
        pin: put batches into pinned memory, which is copied to a GPU faster.
    """

    def __init__(
        self, images: Dataset[Any], collate: Callable[[list[Any]], Any], config: BaseConfig, first: int, last: int,
        pin: bool = False,
    ) -> None:  # fmt: skip
        data = config.data
        micro_batches = MicroBatches(images, data.batch_size, config.run.seed, first, last, sharing(config))
        self._loader: DataLoader[Any] = DataLoader(
            _Seeded(images, config.run.seed), batch_sampler=micro_batches, num_workers=data.workers,
            collate_fn=_Collate(collate), pin_memory=pin, worker_init_fn=_start_worker,
        )  # fmt: skip
        self.parallel = max(data.workers, 1)
        self.limit = data.max_unreadable
        self.unreadable: set[str] = set()
        self.dropped: Counter[str] = Counter()
        self.images = 0
        self.waited = self.decoded = 0.0

    def __iter__(self) -> Generator[Any, None, None]:
        """The batches. Close it: the worker processes ignore SIGTERM, so Python would wait for them at exit."""
        began = time.perf_counter()  # the time that the workers take to start is waiting, too
        batches = iter(self._loader)
        try:
            while True:
                batch = next(batches, None)
                if batch is None:
                    return
                self.waited += time.perf_counter() - began
                self.decoded += batch.seconds
                self.images += batch.images
                self.dropped.update(batch.dropped)
                for message in batch.unreadable:
                    self._skip(message)
                yield batch.value
                began = time.perf_counter()
        finally:
            del batches  # ends the workers; the traceback of an error would keep them

    def _skip(self, message: str) -> None:
        if message in self.unreadable:
            return
        self.unreadable.add(message)
        count = len(self.unreadable)
        if count > self.limit:
            raise DataError(f"{message}; more than data.max_unreadable = {self.limit} images cannot be read")
        print(f"deformvit: skipped {message} ({count} so far)", file=sys.stderr)

    def throughput(self, seconds: float) -> dict[str, float]:
        """Images per second of this process since the last call.

        Args:
            seconds: since the last call.

        Returns:
            ``images_s``, those that were trained; ``loader_images_s``, those that its workers could decode without
            waiting for the model; ``loader_ratio``, that over those that the model could train without waiting for
            images: below 1, the loader is the bottleneck. Empty if there were no images.
        """
        images, waited, decoded = self.images, self.waited, self.decoded
        self.images, self.waited, self.decoded = 0, 0.0, 0.0
        if not images or seconds <= 0:
            return {}
        if self._loader.num_workers == 0:  # waiting is decoding, and the model's time is the rest
            waited = decoded
        loader, model = self.parallel * images / max(decoded, 1e-9), images / max(seconds - waited, 1e-9)
        return {"images_s": images / seconds, "loader_images_s": loader, "loader_ratio": loader / model}

    def take_dropped(self) -> list[str]:
        """Counts of what the data set left out of images since the last call, a line for each kind."""
        lines = [f"{count} {kind}" for kind, count in sorted(self.dropped.items())]
        self.dropped.clear()
        return lines
