"""The one training loop. It knows a task by the contract below and imports no model."""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from deformvit.config import BaseConfig, as_dict
from deformvit.engine import checkpoint
from deformvit.engine.log import MetricsLog
from deformvit.engine.optim import build_optimizer, build_schedule, total_steps
from deformvit.engine.runtime import autocast, pick_device, seed_all
from deformvit.errors import UserError
from deformvit.storage import write_atomically


class Task(Protocol):
    """What the loop asks of a task."""

    main_metric: str
    """Key of :meth:`evaluate` that decides which model is best; larger is better."""

    def build_model(self) -> nn.Module:
        """The network, with its starting weights."""

    def train_batches(self, epoch: int) -> Iterable[Any]:
        """The batches of an epoch; the same again for the same epoch and seed. Has a length."""

    def steps_per_epoch(self) -> int:
        """Length of :meth:`train_batches`."""

    def losses(self, model: nn.Module, batch: Any, device: torch.device) -> dict[str, Tensor]:
        """Scalar training losses of a batch by name; their sum is minimised."""

    def evaluate(self, model: nn.Module, device: torch.device, progress: bool) -> dict[str, float]:
        """Metrics of the model on the validation images."""

    def save_model(self, model: nn.Module, path: Path, metrics: dict[str, float]) -> None:
        """Write weights that can be used without the run, with what is needed to use them."""


class NonFiniteLoss(UserError):
    """The loss became infinite or not a number."""


def fit(task: Task, config: BaseConfig) -> dict[str, float]:
    """Train, evaluate and write everything under ``config.run.output``; returns the last evaluation.

    Files: ``config.json``, ``metrics.jsonl``, ``tensorboard/``, ``last.pt`` (to resume), ``best.safetensors`` (to use).

    Raises:
        NonFiniteLoss: naming epoch and step.
        CheckpointError: ``run.resume`` and a checkpoint that cannot be used.
    """
    out = config.run.output
    last = out / "last.pt"
    if not config.run.resume and last.exists():
        raise checkpoint.CheckpointError(
            f"{out} holds a run; pass --run.resume to continue it, or another --run.output"
        )
    device = pick_device(config.run.device)
    seed_all(config.run.seed)
    model = task.build_model().to(device)
    steps = task.steps_per_epoch()
    epochs = -(-total_steps(config, steps) // steps)
    optimizer = build_optimizer(model, config)
    schedule = build_schedule(optimizer, config, steps)
    scaler = torch.amp.GradScaler(device.type, enabled=config.run.amp == "fp16")
    first, best, metrics, seconds = 0, -math.inf, {}, 0.0
    if config.run.resume and last.exists():
        state = checkpoint.load(last)
        try:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            scaler.load_state_dict(state["scaler"])
            first, best, metrics, seconds = state["epoch"], state["best"], state["metrics"], state["seconds"]
        except (KeyError, RuntimeError, ValueError) as error:
            raise checkpoint.CheckpointError(f"{last}: does not belong to this run ({error})") from error
        if first >= epochs:
            print(f"{out}: all {epochs} epochs are done", file=sys.stderr)
    write_atomically(out / "config.json", lambda path: path.write_text(json.dumps(as_dict(config), indent=2) + "\n"))

    with MetricsLog(out, first) as log:
        for epoch in range(first, epochs):
            began = time.perf_counter()
            # Every epoch draws from its own seed, so that a resumed run repeats exactly what would have come.
            seed_all(config.run.seed + 1_000_003 * (epoch + 1))
            metrics = _train_epoch(task, config, model, optimizer, schedule, scaler, device, epoch, steps)
            metrics["lr"] = optimizer.param_groups[0]["lr"]
            if (epoch + 1) % config.run.eval_every == 0 or epoch + 1 == epochs:
                metrics |= task.evaluate(model, device, config.run.progress)
            seconds += time.perf_counter() - began
            metrics["seconds"] = seconds
            if metrics.get(task.main_metric, -math.inf) > best:
                best = metrics[task.main_metric]
                task.save_model(model, out / "best.safetensors", metrics)
            log.write(epoch, metrics)  # before the state: a line too many is dropped on resuming, one too few is lost
            checkpoint.save(
                last,
                {
                    "model": model.state_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(),
                    "epoch": epoch + 1, "best": best, "metrics": metrics, "seconds": seconds,
                },
            )  # fmt: skip
            shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            print(f"epoch {epoch + 1}/{epochs}  {shown}", flush=True)
    return metrics


def _train_epoch(
    task: Task, config: BaseConfig, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: Any,
    scaler: torch.amp.GradScaler, device: torch.device, epoch: int, steps: int,
) -> dict[str, float]:  # fmt: skip
    """One epoch, or what is left of the run's steps; returns mean losses."""
    model.train()
    total_all = total_steps(config, steps)
    epochs, length = -(-total_all // steps), min(steps, total_all - epoch * steps)
    sums: dict[str, Tensor] = {}
    bar = tqdm(
        itertools.islice(task.train_batches(epoch), length), total=length, desc=f"epoch {epoch + 1}/{epochs}",
        unit="step", leave=False, disable=not config.run.progress, dynamic_ncols=True, mininterval=0.5,
    )  # fmt: skip
    for step, batch in enumerate(bar):
        schedule.step_update(epoch * steps + step)
        with autocast(device, config.run.amp):
            parts = task.losses(model, batch, device)
        loss = torch.stack([part.float() for part in parts.values()]).sum()
        value = loss.detach()
        if not torch.isfinite(value):
            named = ", ".join(f"{name} {part.item():.4g}" for name, part in parts.items())
            raise NonFiniteLoss(
                f"loss is {value.item()} at epoch {epoch + 1}, step {step + 1} of {length}"
                + (f" ({named})" if len(parts) > 1 else "")
            )
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        if config.optim.clip_grad > 0:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_grad)
        scaler.step(optimizer)
        scaler.update()
        for name, part in {"train_loss": value, **(parts if len(parts) > 1 else {})}.items():
            sums[name] = sums.get(name, torch.zeros((), device=device)) + part.detach()
        if step % 10 == 0:
            bar.set_postfix(loss=f"{value.item():.3f}", lr=f"{optimizer.param_groups[0]['lr']:.2e}", refresh=False)
    return {name: (total / length).item() for name, total in sums.items()}
