"""Measuring in a process of its own: what to measure goes there as JSON, what was measured comes back as JSON."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
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


class Apart:
    """A process that measures again and again when asked: ``python -m module``, whose main is :func:`serve_rounds`.

    Several can be asked in turn, so that what disturbs the machine disturbs all, while each has memory of its own.
    """

    def __init__(self, module: str, job: dict[str, Any]) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - ended by end(); a pipe unread would fill up
        self.process = subprocess.Popen(
            [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env=environment,
        )  # fmt: skip
        self.first: str | None = json.dumps(job)

    def ask(self, what: str) -> dict[str, Any]:
        """The answer to ``what``, or ``{"error": ...}`` if the process has ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            for line in filter(None, (self.first, what)):
                self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
            self.first = None
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            code = self.process.wait()
            self.log.seek(0)
            lines = self.log.read().strip().splitlines()
            return {"error": lines[-1] if lines else f"ended with signal {-code}"}
        result: dict[str, Any] = json.loads(answer)
        return result

    def end(self) -> None:
        """Let it go."""
        self.process.kill()
        self.process.wait()
        self.log.close()


def serve_rounds(make: Callable[[dict[str, Any]], Callable[[str], dict[str, Any]]]) -> None:
    """The other side of :class:`Apart`: ``make(job)`` answers what is asked."""
    answer = make(json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        print(json.dumps(answer(line.strip())), flush=True)


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
