"""Measuring in a process of its own: what to measure goes there as JSON, what was measured comes back as JSON."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from deformvit.errors import UserError


def peak_mib(device: torch.device) -> float:
    """The most that has been used: of the device's memory by tensors, on the CPU by the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Of one call, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def apart(module: str, job: dict[str, Any], timeout: float = 3600) -> dict[str, Any]:
    """Run ``python -m module`` on a job; errors come back as ``{"error": ...}``, a killed process too."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(
            [sys.executable, "-m", module], input=json.dumps(job), capture_output=True, text=True, timeout=timeout,
            env=environment, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {timeout:.0f} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"ended with signal {-done.returncode}"}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def serve(measure: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The other side of :func:`apart`."""
    print(json.dumps(measure(json.load(sys.stdin))))


def machine(device: torch.device) -> dict[str, Any]:
    """What figures belong to."""
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


def device_of(name: str) -> torch.device:
    """A device by its name, ``auto`` for the GPU if there is one.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {name}: there is no CUDA device here")
    return device
