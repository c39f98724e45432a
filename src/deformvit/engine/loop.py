"""The one training loop, for every task, on one process or many. It knows a task by the contract below."""

from __future__ import annotations

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

from deformvit import distributed
from deformvit.config import BaseConfig
from deformvit.devices import pick_device
from deformvit.engine.checkpoint import CheckpointError, Checkpoints
from deformvit.engine.faults import NonFiniteLoss, Stopped, StopSignal, any_process, describe_nonfinite
from deformvit.engine.loader import Loader, sharing, steps_per_epoch
from deformvit.engine.log import LossSums, MetricsLog
from deformvit.engine.optim import build_optimizer, build_schedule, current_rate, total_steps
from deformvit.engine.record import Origin, read_record, refuse_changes, write_record
from deformvit.engine.replica import Replica, clip_gradients, fill_state
from deformvit.engine.report import Rows, describe_run, resume_command, show
from deformvit.engine.runtime import autocast, mix, seed_all
from deformvit.errors import UserError
from deformvit.progress import Progress
from deformvit.runs import CONFIG

MAX_SKIPPED = 10
"""Consecutive steps that ``run.nonfinite skip`` may leave out."""


class Task(Protocol):
    """What the loop asks of a task."""

    main_metric: str
    """Key of :meth:`evaluate` that decides which model is best; larger is better."""

    classes: list[str]
    """Names of the classes."""

    @property
    def train_set(self) -> Dataset[Any]:
        """Training images; an item depends only on its index and the random numbers drawn for it."""

    def build_model(self) -> nn.Module:
        """The network, with its starting weights."""

    def describe(self, model: nn.Module) -> list[tuple[str, str]]:
        """What the run found, by name: images, classes, the model that was built and the weights it starts from."""

    def body(self, model: nn.Module) -> nn.Module:
        """The part of the model that compilation, recomputation and sharding concern: its backbone, or all of it."""

    def collate(self, items: list[Any]) -> Any:
        """Items of the training set -> a batch. Called in loader processes."""

    def losses(self, model: nn.Module, batch: Any, device: torch.device) -> dict[str, Tensor]:
        """Scalar training losses of a batch by name; their sum is minimised."""

    def evaluate(self, model: nn.Module, device: torch.device, progress: bool) -> dict[str, float]:
        """Metrics of the model on the validation images, which processes share; the same in all of them."""

    def save_model(self, model: nn.Module, path: Any, metrics: dict[str, float]) -> None:
        """Write a model file that can be used without the run."""


def fit(task: Task, config: BaseConfig, origin: Origin | None = None) -> dict[str, float]:
    """Train, evaluate and write everything under ``config.run.output``; returns the metrics of the last epoch.

    Files: ``config.json``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/`` (to resume), ``best.safetensors`` (to
    use). A run that torchrun restarts after a failure resumes without ``run.resume``.

    Args:
        task: what is trained.
        config: of the run. ``run.resume`` is None, or the same as ``run.output``.
        origin: what ``config.json`` records besides; of a resumed run what it says already.

    Raises:
        NonFiniteLoss: a loss or gradient is not finite; names the step, losses and parameters.
        CheckpointError: the folder holds a run and ``run.resume`` is not set, the run there was begun with other
            options or images, no checkpoint can be resumed from, or one cannot be written.
        Stopped: SIGTERM was received; the state is written.
    """
    return _Run(task, config, origin or Origin()).train()


class _Run:
    """A run in one process."""

    def __init__(self, task: Task, config: BaseConfig, origin: Origin) -> None:
        self.task, self.config, self.origin, self.out = task, config, origin, config.run.output
        self.device = pick_device(config.run.device)
        self.main = distributed.rank() == 0
        self.checkpoints = Checkpoints(self.out / "checkpoints", config.run.keep)
        restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        if config.run.resume not in (None, self.out):
            raise UserError(
                f"run.resume is {config.run.resume}, run.output {self.out}: a run goes on in its own folder"
            )
        resume = config.run.resume is not None or restarted
        begun = distributed.broadcast(bool(self.checkpoints.steps()))
        if begun and not resume:
            raise CheckpointError(
                f"{self.out} holds a run: go on with it by `{resume_command(self.out)}`, or choose another --run.output"
            )
        before = self._compare_with_record() if begun else None
        self.images = len(task.train_set)  # type: ignore[arg-type]
        self.steps = steps_per_epoch(task.train_set, config)
        self.total = total_steps(config, self.steps)
        self.epochs = -(-self.total // self.steps)
        self.share = sharing(config)
        seed_all(config.run.seed)
        model = task.build_model().to(self.device)
        self.found: Rows = [*task.describe(model), *describe_run(config, self.device, self.steps)]
        self.replica = Replica(model, task.body(model), config, self.device)
        self.optimizer = build_optimizer(self.replica.model, config)
        self.schedule = build_schedule(self.optimizer, config, self.steps)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.run.amp == "fp16")
        self.trained = [p for p in self.replica.model.parameters() if p.requires_grad]
        self.step, self.best, self.seconds, self.skipped = 0, -math.inf, 0.0, 0
        self.metrics: dict[str, float] = {}
        self.sums = LossSums(self.device)
        """Losses of the epoch so far."""
        if before:
            self._resume(before)

    def train(self) -> dict[str, float]:
        """Train the remaining steps."""
        if self.step >= self.total and self.main:
            print(f"{self.out}: all {self.epochs} epochs are done", file=sys.stderr)
        if self.main:
            write_record(self.out, self.config, self.origin)
            show(self.found)
        loader = Loader(
            self.task.train_set, self.task.collate, self.config, self.step, self.total, pin=self.device.type == "cuda"
        )
        first = self.step // self.steps
        with MetricsLog(self.out, first, self.main) as log, StopSignal() as stop, closing(iter(loader)) as batches:
            while self.step < self.total:
                self._epoch(batches, loader, stop, log)
        return self.metrics

    def _epoch(self, batches: Iterator[Any], loader: Loader, stop: StopSignal, log: MetricsLog) -> None:
        """The remaining steps of an epoch, its evaluation and its checkpoint."""
        epoch, config = self.step // self.steps, self.config
        first, last = epoch * self.steps, min((epoch + 1) * self.steps, self.total)
        began = saved = time.perf_counter()
        before = self.seconds
        self.replica.model.train()
        with Progress(
            f"epoch {epoch + 1}/{self.epochs}", last - first, "step", bar=config.run.progress, done=self.step - first,
            after=self.total - last, images=config.data.batch_size,
        ) as progress:  # fmt: skip
            while self.step < last:
                due = self.main and time.perf_counter() - saved > 60 * config.run.save_minutes > 0
                stopping, saving = self._step(batches, stop.received, due)
                if progress.update():  # the only time that losses are read within an epoch
                    rate = current_rate(self.optimizer)
                    loss = self.sums.read().get("train_loss", math.nan) / max(self.sums.steps, 1)
                    progress.show(loss=f"{loss:.3f}", lr=f"{rate:.2e}")
                if (stopping or saving) and self.step < last:
                    self.seconds = before + time.perf_counter() - began
                    self._save()
                    saved = time.perf_counter()
                if stopping and self.step < last:
                    raise self._stopped(f"step {self.step} of {self.total}")
        sums, steps = self.sums.total()  # waits for the device, so that the time is that of all steps
        trained = time.perf_counter() - began
        self.metrics = {name: value / steps for name, value in sums.items()}
        self.metrics |= {"lr": current_rate(self.optimizer), **loader.throughput(trained)}
        self.sums = LossSums(self.device)
        for line in loader.take_dropped() if self.main else ():
            print(f"deformvit: left out in epoch {epoch + 1}: {line}", file=sys.stderr)
        model = None
        if (epoch + 1) % config.run.eval_every == 0 or epoch + 1 == self.epochs:
            model = self.replica.eval_model()
            self.metrics |= self.task.evaluate(model, self.device, config.run.progress)
        self.metrics["seconds"] = self.seconds = before + time.perf_counter() - began
        if model is not None and self.metrics.get(self.task.main_metric, -math.inf) > self.best:
            self.best = self.metrics[self.task.main_metric]
            if self.main:
                self.task.save_model(model, self.out / "best.safetensors", self.metrics)
        if self.main:
            log.write(epoch, self.metrics)  # before the checkpoint: resuming drops a line too many
            shown = "  ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
            print(f"epoch {epoch + 1}/{self.epochs}  {shown}", flush=True)
        self._save()
        if any_process(self.device, stop.received)[0] and self.step < self.total:
            raise self._stopped(f"epoch {epoch + 1} of {self.epochs}")

    def _step(self, batches: Iterator[Any], stop: bool, save: bool) -> tuple[bool, bool]:
        """One optimiser step; returns whether any process wants to stop, and to save."""
        config, share = self.config, self.share
        self.schedule.step_update(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        losses: dict[str, Tensor] = {}
        for part in range(share.accumulate):
            batch = next(batches)
            # Dropped paths and mixed images come from the step, not from how many random numbers were drawn before it.
            seed_all(mix(config.run.seed, self.step, share.rank, part))
            with self.replica.accumulating(last=part + 1 == share.accumulate):
                with autocast(self.device, config.run.amp):
                    parts = self.task.losses(self.replica.wrapped, batch, self.device)
                loss = torch.stack([value.float() for value in parts.values()]).sum() / share.accumulate
                self.scaler.scale(loss).backward()
            for name, value in parts.items():
                added = value.detach().float() / share.accumulate
                losses[name] = losses[name] + added if name in losses else added
        self.scaler.unscale_(self.optimizer)
        grad_norm = clip_gradients(self.trained, config.optim.clip_grad)
        total = torch.stack(list(losses.values())).sum()
        # Scaled losses overflow now and then; the scaler leaves such steps out by itself.
        finite = total.isfinite() if self.scaler.is_enabled() else total.isfinite() & grad_norm.isfinite()
        # The one time in a step that the host waits for the device. What it reads decides whether the optimiser steps,
        # in all processes alike. Read a step later, the gradients that an error names would be gone, and waiting for
        # images would be measured while the device still computes.
        nonfinite, stopping, saving = any_process(self.device, ~finite, stop, save)
        if nonfinite:
            self._report_nonfinite(losses)
        else:
            self.skipped = 0
            self.scaler.step(self.optimizer)
            self.replica.update_average()
            self.sums.add({"train_loss": total, **(losses if len(losses) > 1 else {})})
        self.scaler.update()
        self.step += 1
        return stopping, saving

    def _report_nonfinite(self, losses: dict[str, Tensor]) -> None:
        """Stop the run, or warn that the step is left out."""
        epoch, number = divmod(self.step, self.steps)
        position = f"epoch {epoch + 1}, step {number + 1} of {self.steps}"
        cause = describe_nonfinite(self.replica.model, losses)
        message = f"loss or gradient is not finite at {position} ({cause})"
        self.skipped += 1
        if self.config.run.nonfinite == "stop":
            raise NonFiniteLoss(f"{message}; with --run.nonfinite skip the step would be left out")
        if self.skipped > MAX_SKIPPED:
            raise NonFiniteLoss(f"{message}; {self.skipped} steps in a row")
        if self.main:
            print(f"deformvit: {message}; step left out", file=sys.stderr)

    def _save(self) -> None:
        sums, counted = self.sums.total()
        state = {
            "step": self.step, "steps_per_epoch": self.steps, "best": self.best, "metrics": self.metrics,
            "sums": sums, "counted": counted, "seconds": self.seconds, "skipped": self.skipped,
            "scaler": self.scaler.state_dict(), "images": self.images, "classes": self.task.classes,
        }  # fmt: skip
        self.checkpoints.save(self.step, self.replica.tensors(self.optimizer), state)

    def _stopped(self, when: str) -> Stopped:
        return Stopped(f"SIGTERM: stopped after {when}; `{resume_command(self.out)}` goes on")

    def _compare_with_record(self) -> BaseConfig:
        """The configuration that the run in the folder was begun with; refuses to go on with another one."""
        if not (self.out / CONFIG).is_file():
            raise CheckpointError(f"{self.out} has checkpoints, but no {CONFIG}, which says of what run")
        before, self.origin = read_record(self.out)
        refuse_changes(self.out, before, self.config)
        return before

    def _resume(self, before: BaseConfig) -> None:
        """Go on from the newest checkpoint."""
        newest = self.checkpoints.newest()
        if newest is None:
            return
        state, path = self.checkpoints.state(newest), self.checkpoints.path(newest)
        root = self.config.data.root
        if state.get("images", self.images) != self.images:
            raise CheckpointError(f"{path} is of a run on {state['images']} images, but {root} has {self.images}")
        if state.get("classes", self.task.classes) != self.task.classes:
            raise CheckpointError(f"{path} is of a run on other classes than those of {root}")
        if state["steps_per_epoch"] != self.steps:
            raise CheckpointError(
                f"{path} does not belong to this run: its epochs have {state['steps_per_epoch']} steps, those of this "
                f"run {self.steps}"
            )
        fill_state(self.optimizer)
        self.checkpoints.load(newest, self.replica.tensors(self.optimizer))
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.best, self.metrics = state["step"], state["best"], state["metrics"]
        if self.main:  # the sums are those of all processes, which add to them from here on
            self.sums.restore(state["sums"], state["counted"])
        self.seconds, self.skipped = state["seconds"], state["skipped"]
        self.found.append(("resumes", f"after step {self.step:,} of {self.total:,}{self._longer(before)}"))

    def _longer(self, before: BaseConfig) -> str:
        """What it means for the rate that a run was made longer; empty where it was not."""
        total = total_steps(before, self.steps)
        if total == self.total or self.step >= self.total:
            return ""
        self.schedule.step_update(self.step)
        rate = current_rate(self.optimizer)
        return f", {total:,} till now; its rate goes on as in a run of {self.total:,}, from {rate:.3g}"
