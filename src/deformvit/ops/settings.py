"""Settings that a ``with`` block changes for the code inside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Generic, TypeVar

import torch

T = TypeVar("T")

_DYNAMO_READS_CONTEXT_VARIABLES = torch.__version__ >= "2.14"


class ScopedSetting(Generic[T]):
    """A value that a ``with`` block replaces for the code inside it, in the block's own thread or asyncio task only.

    A function compiled by ``torch.compile`` reads the value with a guard: called under another value, it is compiled
    again. A block cannot be opened inside a compiled function: Dynamo leaves the graph there, and raises under
    ``fullgraph=True``. Dynamo cannot read context variables before PyTorch 2.14. There the same happens where a
    compiled function reads the value while a block is open anywhere in the process.
    """

    def __init__(self, name: str, default: T) -> None:
        self._default = default
        self._value: ContextVar[T] = ContextVar(name, default=default)
        self._open_blocks = 0
        self._lock = Lock()

    def get(self) -> T:
        """The innermost block's value, outside all blocks the default."""
        if not _DYNAMO_READS_CONTEXT_VARIABLES and torch.compiler.is_compiling() and self._open_blocks == 0:
            return self._default
        return self._value.get()

    @contextmanager
    def replaced(self, value: T) -> Iterator[None]:
        """The block inside which :meth:`get` returns ``value``."""
        with self._lock:
            self._open_blocks += 1
        token = self._value.set(value)
        try:
            yield
        finally:
            self._value.reset(token)
            with self._lock:
                self._open_blocks -= 1
