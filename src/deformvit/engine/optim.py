"""Optimiser and schedule, built from timm's parts."""

from __future__ import annotations

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from deformvit.config import BaseConfig
from deformvit.errors import UserError


def build_optimizer(model: nn.Module, config: BaseConfig) -> torch.optim.Optimizer:
    """AdamW without weight decay for norms, biases and the parameters that the model's ``no_weight_decay`` names.

    Raises:
        UserError: ``optim.layer_decay`` for a model without timm's ``group_matcher``, which groups it into layers.
    """
    optim = config.optim
    if optim.layer_decay and not hasattr(model, "group_matcher"):
        raise UserError(f"optim.layer_decay: {type(model).__name__} has no group_matcher, which lists its layers")
    return create_optimizer_v2(
        model, opt="adamw", lr=peak_rate(config), weight_decay=optim.weight_decay, betas=optim.betas,
        layer_decay=optim.layer_decay or None,
    )  # fmt: skip


def current_rate(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate of the step that comes, without the factors of layer-wise decay."""
    return max(group["lr"] for group in optimizer.param_groups)


def total_steps(config: BaseConfig, steps_per_epoch: int) -> int:
    """Optimiser steps of the whole run."""
    return config.run.steps or config.run.epochs * steps_per_epoch


def warmup_steps(config: BaseConfig, steps_per_epoch: int) -> int:
    """Optimiser steps of linear warm-up."""
    optim = config.optim
    wanted = optim.warmup_steps or round(optim.warmup_epochs * steps_per_epoch)
    return min(wanted, total_steps(config, steps_per_epoch) - 1)


def build_schedule(optimizer: torch.optim.Optimizer, config: BaseConfig, steps_per_epoch: int) -> Scheduler:
    """Linear warm-up, then the decay of ``optim.schedule``, per optimiser step; every rate scales with the batch."""
    optim, scale = config.optim, _batch_scale(config)
    total, warmup = total_steps(config, steps_per_epoch), warmup_steps(config, steps_per_epoch)
    if optim.schedule == "steps" or total - warmup == 1:  # a curve of one step is its peak; timm would remark on it
        # Milestones count from the start of the run, warm-up included; timm applies one a step early.
        epochs = optim.milestones if optim.schedule == "steps" else ()
        milestones = [epoch * steps_per_epoch + 1 for epoch in epochs]
        return MultiStepLRScheduler(
            optimizer, decay_t=milestones, decay_rate=0.1, warmup_t=warmup, warmup_lr_init=optim.warmup_lr * scale,
            warmup_prefix=False, t_in_epochs=False,
        )  # fmt: skip
    common = {
        "t_initial": total - warmup, "lr_min": optim.min_lr * scale, "warmup_t": warmup,
        "warmup_lr_init": optim.warmup_lr * scale, "warmup_prefix": True, "t_in_epochs": False,
    }  # fmt: skip
    if optim.schedule == "poly":
        return PolyLRScheduler(optimizer, power=optim.power, **common)
    return CosineLRScheduler(optimizer, **common)


def peak_rate(config: BaseConfig) -> float:
    """The learning rate after the warm-up, before that of layers is scaled."""
    return config.optim.lr * _batch_scale(config)


def _batch_scale(config: BaseConfig) -> float:
    return config.data.batch_size / config.optim.lr_batch if config.optim.lr_batch else 1.0
