"""Several processes, as torchrun starts them: which one this is, and what all of them found."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch.distributed import DistStoreError
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

_joined = False
"""Whether this process has joined others."""


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def size() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def gather(value: Any) -> list[Any]:
    """What every process passed, in their order; in all of them."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    distributed.all_gather_object(values, value)
    return values


def broadcast(value: Any) -> Any:
    """What the first process passed, in all of them."""
    if size() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def meet(store: Store, number: int, count: int, patience: timedelta = timedelta(minutes=10)) -> str:
    """A name that the processes of this start agree on and those before them did not have.

    What torchrun counts (``TORCHELASTIC_RESTART_COUNT``) is no such name: a node that starts again because another
    node did does not count that. So every process leaves a word of its own, which the first one answers with its own;
    what the dead have left is answered too, where nobody looks.

    Args:
        store: what they share, with all that earlier starts left in it.
        number: of this process.
        count: of processes.
        patience: how long to wait for the others.

    Raises:
        TimeoutError: not all processes came.
    """
    own = uuid.uuid4().hex
    deadline = time.monotonic() + patience.total_seconds()
    if number > 0:
        store.set(f"here/{number}", own)
        try:
            store.wait([f"first/{own}"], patience)
        except DistStoreError as error:
            raise TimeoutError(f"the first of {count} processes did not come within {patience}") from error
        name = store.get(f"first/{own}").decode()
        store.add(f"met/{name}", 1)
        return name
    answered: dict[int, bytes] = {}
    while (met := store.add(f"met/{own}", 0)) < count - 1:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{met + 1} of {count} processes came within {patience}")
        for other in range(1, count):
            word = store.get(f"here/{other}") if store.check([f"here/{other}"]) else b""
            if word and word != answered.get(other):
                store.set(f"first/{word.decode()}", own)
                answered[other] = word
        time.sleep(0.02)
    return own


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """Join the processes that torchrun started; does nothing in a process that was started alone."""
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    store, number, count = next(rendezvous("env://"))
    # torchrun keeps the store when it starts processes again; under the same names they find the addresses of the dead.
    store = PrefixStore(meet(store, number, count), store)
    distributed.init_process_group("nccl" if cuda else "gloo", store=store, rank=number, world_size=count)
    global _joined
    _joined = True
    try:
        yield
    finally:
        distributed.destroy_process_group()


def leave(status: int) -> None:
    """End a process that had joined others, without Python's finalisation; returns in one that was started alone.

    Gloo's threads outlive the process group where PyTorch's caches of device meshes hold it. If they let go of a
    tensor while Python is finalised, the process is aborted, and torchrun takes work that is done for failed
    (pytorch/pytorch#179291).
    """
    if _joined:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
