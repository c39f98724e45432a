"""Optimiser and schedule, from timm's parts."""

from __future__ import annotations

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

from deformvit.config import Config


def build_optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    """AdamW whose weight decay spares norms, biases and what the model's ``no_weight_decay`` names."""
    scale = config.data.batch_size / config.optim.lr_batch if config.optim.lr_batch else 1.0
    return create_optimizer_v2(
        model, opt="adamw", lr=config.optim.lr * scale, weight_decay=config.optim.weight_decay, betas=config.optim.betas
    )


def build_schedule(optimizer: torch.optim.Optimizer, config: Config, steps_per_epoch: int) -> CosineLRScheduler:
    """Linear warm-up and cosine decay in optimiser steps; every rate scales with the batch like the peak."""
    scale = config.data.batch_size / config.optim.lr_batch if config.optim.lr_batch else 1.0
    total = config.run.epochs * steps_per_epoch
    warmup = min(round(config.optim.warmup_epochs * steps_per_epoch), total - 1)
    return CosineLRScheduler(
        optimizer,
        t_initial=total - warmup,
        lr_min=config.optim.min_lr * scale,
        warmup_t=warmup,
        warmup_lr_init=config.optim.warmup_lr * scale,
        warmup_prefix=True,
        t_in_epochs=False,
    )
