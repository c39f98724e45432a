"""Several processes, as torchrun starts them: which one this is, and what all of them found."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous


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
    store = PrefixStore(f"restart-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    distributed.init_process_group("nccl" if cuda else "gloo", store=store, rank=number, world_size=count)
    try:
        yield
    finally:
        distributed.destroy_process_group()
