"""Tensors that depend on sizes and a device only, kept between calls."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from deformvit.ops.tracing import is_tracing, is_transformed


class ConstantCache:
    """Constant tensors by the function that makes them and its arguments. Several threads can use it.

    Args:
        capacity: how many tensors are kept; the least recently used one is dropped first.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._tensors: OrderedDict[tuple[Hashable, ...], Tensor] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._tensors)

    def get(self, make: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """``make(*arguments)``, from the cache if it is there.

        Compilation, export and tracing record how the tensor is made, so they never get a kept one. Fake tensors are
        not kept.
        """
        if torch.compiler.is_compiling() or is_tracing() or is_transformed():
            return make(*arguments)
        key = (make, *arguments)
        with self._lock:
            if key in self._tensors:
                self._tensors.move_to_end(key)
                return self._tensors[key]
        with torch.inference_mode(False), torch.no_grad():  # an inference tensor could not be used in training later
            tensor = make(*arguments)
        if type(tensor) is Tensor:
            with self._lock:
                self._tensors[key] = tensor
                if len(self._tensors) > self.capacity:
                    self._tensors.popitem(last=False)
        return tensor
