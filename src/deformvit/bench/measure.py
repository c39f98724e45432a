"""Time, memory and the machine that they were measured on."""

from __future__ import annotations

import platform
import statistics
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from deformvit.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def peak_mib(device: torch.device) -> float:
    """Peak memory in MiB so far: of the tensors on a CUDA device; on the CPU of the process.

    Raises:
        UserError: on Windows, for the CPU.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "linux":
        # Not getrusage, whose peak is at least that of the process that started this one.
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    try:
        import resource
    except ModuleNotFoundError as error:
        raise UserError("the peak memory of a process cannot be measured on Windows") from error
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Time of one call in seconds, including its work on a CUDA device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


class TimedModel(ABC):
    """A model and random inputs; a call is one pass. Responds to the requests "time" and "totals" of a worker."""

    device: torch.device
    model: nn.Module
    parameters: int

    @abstractmethod
    def __call__(self) -> None:
        """One pass, forward or forward and backward."""

    def respond(self, request: str) -> dict[str, Any]:
        """ "time": seconds of one pass. "totals": peak MiB so far, and parameters of the model."""
        if request == "time":
            return {"seconds": seconds(self, self.device)}
        return {"mib": peak_mib(self.device), "parameters": self.parameters}


def summary(times: Sequence[dict[str, Any]], warmup: int) -> dict[str, Any]:
    """Median, fastest and slowest of the times after the first ``warmup``; the first error if there is one."""
    for time_or_error in times:
        if "error" in time_or_error:
            return dict(time_or_error)
    measured = [t["seconds"] for t in times[warmup:]]
    return {"seconds": statistics.median(measured), "fastest": min(measured), "slowest": max(measured)}


def machine(device: torch.device) -> dict[str, Any]:
    """Device, threads and versions, which a report states."""
    import timm

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": name, "threads": torch.get_num_threads(), "torch": torch.__version__, "timm": timm.__version__,
        "python": platform.python_version(),
    }  # fmt: skip


def _processor() -> str:
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as lines:
            name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name} ({platform.machine()})"
