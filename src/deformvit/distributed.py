"""Several processes, as torchrun starts them: which one this is, and how they exchange values."""

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


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def size() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def gather(value: Any) -> list[Any]:
    """What every process passed, in order of rank; the same list in all of them."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    distributed.all_gather_object(values, value)
    return values


def broadcast(value: Any) -> Any:
    """What the process of rank 0 passed, in all of them."""
    if size() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started, and leave them at the end; does nothing in a process started alone."""
    if not launched():
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    store, number, count = next(rendezvous("env://"))
    # torchrun keeps the store when it restarts processes. Under the same keys they would read the addresses of the
    # processes that died.
    store = PrefixStore(agree_on_prefix(store, number, count), store)
    distributed.init_process_group("nccl" if cuda else "gloo", store=store, rank=number, world_size=count)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def agree_on_prefix(store: Store, rank: int, size: int, timeout: timedelta = timedelta(minutes=10)) -> str:
    """A prefix for keys in the store that all processes of this start know and no earlier start used.

    The restarts that torchrun counts (``TORCHELASTIC_RESTART_COUNT``) don't serve: a node that restarts because another
    node did does not count that. So every process writes a random token, and rank 0 answers each token with its own,
    which is the prefix. Rank 0 also answers tokens that dead processes left; nobody reads those answers.

    Args:
        store: what the processes share, with all keys that earlier starts left in it.
        rank: of this process.
        size: number of processes.
        timeout: how long to wait for the others.

    Raises:
        TimeoutError: not all processes came.
    """
    own = uuid.uuid4().hex
    deadline = time.monotonic() + timeout.total_seconds()
    if rank > 0:
        store.set(f"token/{rank}", own)
        try:
            store.wait([f"answer/{own}"], timeout)
        except DistStoreError as error:
            raise TimeoutError(f"rank 0 of {size} processes did not come within {timeout}") from error
        prefix = store.get(f"answer/{own}").decode()
        store.add(f"joined/{prefix}", 1)
        return prefix
    answered: dict[int, bytes] = {}
    while (joined := store.add(f"joined/{own}", 0)) < size - 1:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{joined + 1} of {size} processes came within {timeout}")
        for other in range(1, size):
            token = store.get(f"token/{other}") if store.check([f"token/{other}"]) else b""
            if token and token != answered.get(other):
                store.set(f"answer/{token.decode()}", own)
                answered[other] = token
        time.sleep(0.02)
    return own


def exit_process(status: int) -> None:
    """End a process that torchrun started, without Python's finalisation; returns in one that was started alone.

    Gloo's threads outlive the process group where PyTorch's caches of device meshes hold it. If they release a tensor
    while Python is finalised, the process is aborted, and torchrun takes finished work for failed
    (pytorch/pytorch#179291).
    """
    if launched():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
