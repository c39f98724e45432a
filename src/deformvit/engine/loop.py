"""The one training loop, for every task, on one process or many. It knows a task by the contract below."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from deformvit import distributed
from deformvit.config import BaseConfig, as_dict
from deformvit.devices import pick_device
from deformvit.engine.checkpoint import CheckpointError, Checkpoints
from deformvit.engine.faults import NonFiniteLoss, Stopped, StopSignal, any_process, describe
from deformvit.engine.loader import Loader, sharing, steps_per_epoch
from deformvit.engine.log import MetricsLog
from deformvit.engine.optim import build_optimizer, build_schedule, total_steps
from deformvit.engine.replica import Replica, fill_state, norm
from deformvit.engine.runtime import autocast, mix, seed_all
from deformvit.storage import write_atomically

SKIPS = 10
"""Steps in a row that may be left out for a loss that is no number."""


class Task(Protocol):
    """What the loop asks of a task."""

    main_metric: str
    """Key of :meth:`evaluate` that decides which model is best; larger is better."""

    @property
    def train_set(self) -> Dataset[Any]:
        """Training images; an item depends on nothing but its index and the random numbers drawn for it."""

    def build_model(self) -> nn.Module:
        """The network, with its starting weights."""

    def body(self, model: nn.Module) -> nn.Module:
        """The part of the model that compilation, recomputation and sharding concern: its backbone, or all of it."""

    def collate(self, items: list[Any]) -> Any:
        """Items of the training set -> a batch. Called in loader processes."""

    def losses(self, model: nn.Module, batch: Any, device: torch.device) -> dict[str, Tensor]:
        """Scalar training losses of a batch by name; their sum is minimised."""

    def evaluate(self, model: nn.Module, device: torch.device, progress: bool) -> dict[str, float]:
        """Metrics of the model on the validation images, which processes share; the same in all of them."""

    def save_model(self, model: nn.Module, path: Any, metrics: dict[str, float]) -> None:
        """Write weights that can be used without the run, with what is needed to use them."""


def fit(task: Task, config: BaseConfig) -> dict[str, float]:
    """Train, evaluate and write everything under ``config.run.output``; returns the last evaluation.

    Files: ``config.json``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/`` (to resume), ``best.safetensors`` (to
    use). A run that torchrun starts again after a failure resumes by itself.

    Raises:
        NonFiniteLoss: naming step, losses and parameters.
        CheckpointError: ``run.resume`` and no checkpoint that can be used, or one that cannot be written.
        Stopped: SIGTERM came; the state is written.
    """
    return _Run(task, config).train()


class _Run:
    """A run in one process."""

    def __init__(self, task: Task, config: BaseConfig) -> None:
        self.task, self.config, self.out = task, config, config.run.output
        self.device = pick_device(config.run.device)
        self.main = distributed.rank() == 0
        self.checkpoints = Checkpoints(self.out / "checkpoints", config.run.keep)
        restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        resume = config.run.resume or restarted
        if not resume and distributed.broadcast(bool(self.checkpoints.steps())):
            raise CheckpointError(f"{self.out} holds a run; pass --run.resume to continue it, or another --run.output")
        self.steps = steps_per_epoch(task.train_set, config)
        self.total = total_steps(config, self.steps)
        self.epochs = -(-self.total // self.steps)
        self.share = sharing(config)
        seed_all(config.run.seed)
        model = task.build_model().to(self.device)
        self.replica = Replica(model, task.body(model), config, self.device)
        self.optimizer = build_optimizer(self.replica.model, config)
        self.schedule = build_schedule(self.optimizer, config, self.steps)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.run.amp == "fp16")
        self.trained = [p for p in self.replica.model.parameters() if p.requires_grad]
        self.step, self.best, self.seconds, self.skipped = 0, -math.inf, 0.0, 0
        self.metrics: dict[str, float] = {}
        self.sums: dict[str, float] = {}
        """Losses of the epoch so far, of this process."""
        self.counted = 0
        """Steps that they are of."""
        if resume:
            self._resume()

    def train(self) -> dict[str, float]:
        """All steps that are left."""
        if self.step >= self.total and self.main:
            print(f"{self.out}: all {self.epochs} epochs are done", file=sys.stderr)
        if self.main:
            text = json.dumps(as_dict(self.config), indent=2) + "\n"
            write_atomically(self.out / "config.json", lambda path: path.write_text(text))
        loader = Loader(
            self.task.train_set, self.task.collate, self.config, self.step, self.total, pin=self.device.type == "cuda"
        )
        first = self.step // self.steps
        with MetricsLog(self.out, first, self.main) as log, StopSignal() as stop, closing(iter(loader)) as batches:
            while self.step < self.total:
                self._epoch(batches, loader, stop, log)
        return self.metrics

    def _epoch(self, batches: Iterator[Any], loader: Loader, stop: StopSignal, log: MetricsLog) -> None:
        """What is left of an epoch, its evaluation and its checkpoint."""
        epoch, config = self.step // self.steps, self.config
        first, last = epoch * self.steps, min((epoch + 1) * self.steps, self.total)
        began = saved = time.perf_counter()
        before = self.seconds
        self.replica.model.train()
        silent = not (config.run.progress and self.main)
        with tqdm(
            total=last - first, initial=self.step - first, desc=f"epoch {epoch + 1}/{self.epochs}", unit="step",
            leave=False, disable=silent or None, dynamic_ncols=True, mininterval=0.5,
        ) as bar:  # fmt: skip
            while self.step < last:
                due = self.main and time.perf_counter() - saved > 60 * config.run.save_minutes > 0
                stopping, saving = self._step(batches, stop.received, due)
                bar.update()
                if self.step % 10 == 1:
                    rate, loss = self.optimizer.param_groups[0]["lr"], self.sums.get("train_loss", math.nan)
                    bar.set_postfix(loss=f"{loss / max(self.counted, 1):.3f}", lr=f"{rate:.2e}", refresh=False)
                if (stopping or saving) and self.step < last:
                    self.seconds = before + time.perf_counter() - began
                    self._save()
                    saved = time.perf_counter()
                if stopping and self.step < last:
                    raise Stopped(f"SIGTERM: stopped after step {self.step} of {self.total}; --run.resume goes on")
        trained = time.perf_counter() - began
        everyone = distributed.gather((self.sums, self.counted))
        steps = max(sum(counted for _, counted in everyone), 1)
        self.metrics = {name: sum(sums[name] for sums, _ in everyone) / steps for name in self.sums}
        self.metrics |= {"lr": self.optimizer.param_groups[0]["lr"], **loader.measured(trained)}
        self.sums, self.counted = {}, 0
        for line in loader.reported() if self.main else ():
            print(f"deformvit: left out in epoch {epoch + 1}: {line}", file=sys.stderr)
        model = None
        if (epoch + 1) % config.run.eval_every == 0 or epoch + 1 == self.epochs:
            model = self.replica.to_use()
            self.metrics |= self.task.evaluate(model, self.device, config.run.progress)
        self.metrics["seconds"] = self.seconds = before + time.perf_counter() - began
        if model is not None and self.metrics.get(self.task.main_metric, -math.inf) > self.best:
            self.best = self.metrics[self.task.main_metric]
            if self.main:
                self.task.save_model(model, self.out / "best.safetensors", self.metrics)
        if self.main:
            log.write(epoch, self.metrics)  # before the state: a line too many is dropped on resuming
            shown = "  ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
            print(f"epoch {epoch + 1}/{self.epochs}  {shown}", flush=True)
        self._save()
        if any_process(self.device, stop.received)[0] and self.step < self.total:
            raise Stopped(f"SIGTERM: stopped after epoch {epoch + 1} of {self.epochs}; --run.resume goes on")

    def _step(self, batches: Iterator[Any], stop: bool, save: bool) -> tuple[bool, bool]:
        """One optimiser step; returns whether any process wants to stop, and to save."""
        config, share = self.config, self.share
        self.schedule.step_update(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        for part in range(share.accumulate):
            batch = next(batches)
            # Dropped paths and mixed images come from the step, not from how many random numbers were drawn before it.
            seed_all(mix(config.run.seed, self.step, share.rank, part))
            with self.replica.accumulating(last=part + 1 == share.accumulate):
                with autocast(self.device, config.run.amp):
                    losses = self.task.losses(self.replica.wrapped, batch, self.device)
                loss = torch.stack([value.float() for value in losses.values()]).sum() / share.accumulate
                self.scaler.scale(loss).backward()
            for name, value in losses.items():
                added = value.detach().float() / share.accumulate
                totals[name] = totals[name] + added if name in totals else added
        self.scaler.unscale_(self.optimizer)
        size = norm(self.trained, config.optim.clip_grad)
        total = torch.stack(list(totals.values())).sum()
        # Scaled losses overflow now and then; the scaler leaves such steps out by itself.
        bad = ~total.isfinite() if self.scaler.is_enabled() else ~(total.isfinite() & size.isfinite())
        broken, stopping, saving = any_process(self.device, bad, stop, save)
        if broken:
            self._complain(totals)
        else:
            self.skipped = 0
            self.scaler.step(self.optimizer)
            self.replica.update_average()
            self.counted += 1
            for name, value in {"train_loss": total, **(totals if len(totals) > 1 else {})}.items():
                self.sums[name] = self.sums.get(name, 0.0) + value.item()
        self.scaler.update()
        self.step += 1
        return stopping, saving

    def _complain(self, losses: dict[str, Tensor]) -> None:
        epoch, number = divmod(self.step, self.steps)
        place = f"epoch {epoch + 1}, step {number + 1} of {self.steps}"
        told = f"loss or gradient is not finite at {place} ({describe(self.replica.model, losses)})"
        self.skipped += 1
        if self.config.run.nonfinite == "stop":
            raise NonFiniteLoss(f"{told}; run.nonfinite skip would leave the step out")
        if self.skipped > SKIPS:
            raise NonFiniteLoss(f"{told}; {self.skipped} steps in a row")
        if self.main:
            print(f"deformvit: {told}; step left out", file=sys.stderr)

    def _save(self) -> None:
        state = {
            "step": self.step, "steps_per_epoch": self.steps, "best": self.best, "metrics": self.metrics,
            "sums": self.sums, "counted": self.counted, "seconds": self.seconds, "skipped": self.skipped,
            "scaler": self.scaler.state_dict(),
        }  # fmt: skip
        self.checkpoints.save(self.step, self.replica.tensors(self.optimizer), state)

    def _resume(self) -> None:
        newest = self.checkpoints.newest()
        if newest is None:
            return
        state = self.checkpoints.state(newest)
        if state["steps_per_epoch"] != self.steps:
            raise CheckpointError(
                f"{self.checkpoints.path(newest)} does not belong to this run: its epochs have "
                f"{state['steps_per_epoch']} steps, those of this run {self.steps}"
            )
        fill_state(self.optimizer)
        self.checkpoints.load(newest, self.replica.tensors(self.optimizer))
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.best, self.metrics = state["step"], state["best"], state["metrics"]
        self.sums, self.counted = state["sums"], state["counted"]
        self.seconds, self.skipped = state["seconds"], state["skipped"]
