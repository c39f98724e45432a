"""What a run says of itself at its start, and how it is gone on with."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch

from deformvit import distributed
from deformvit.config import BaseConfig
from deformvit.engine.optim import peak_rate, total_steps, warmup_steps

Rows = list[tuple[str, str]]
"""Names, and what is said of each."""


def show(rows: Rows) -> None:
    """Print names and values in two columns."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}", flush=True)


def describe_run(config: BaseConfig, device: torch.device, steps: int) -> Rows:
    """Where a run computes, how long and at which rate, and where it writes.

    Args:
        config: the run.
        device: of this process.
        steps: of an epoch.
    """
    total, batch = total_steps(config, steps), config.data.batch_size
    length = f"{total:,} steps" if config.run.steps else f"{config.run.epochs} epochs of {steps:,} steps"
    warmup = warmup_steps(config, steps)
    rising = f", after {warmup:,} steps of warm-up" if warmup else ""
    return [
        ("device", _machine(device, config)),
        ("training", f"{length} of {batch} images, rate {peak_rate(config):.3g}{rising}"),
        ("output", str(config.run.output)),
    ]


def resume_command(folder: Path) -> str:
    """The command that goes on with the run of a folder, for messages."""
    start = "torchrun ... -m deformvit" if distributed.launched() else "deformvit"
    return f"{start} train --run.resume {shlex.quote(str(folder))}"


def _machine(device: torch.device, config: BaseConfig) -> str:
    name = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
    several = f"{distributed.size()} processes ({config.run.parallel})" if distributed.size() > 1 else ""
    precision = f"mixed precision ({config.run.amp})" if config.run.amp != "none" else ""
    return ", ".join(filter(None, (name, several, precision)))
