"""A run's configuration, steps, and estimates of memory and time: ``deformvit train RECIPE --dry-run``."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from deformvit.cli.inputs import print_values
from deformvit.config import BaseConfig, ClassificationConfig, options
from deformvit.devices import pick_device
from deformvit.engine.loader import sharing, steps_per_epoch
from deformvit.engine.loop import Task
from deformvit.engine.optim import build_optimizer, total_steps, warmup_steps
from deformvit.engine.replica import Replica
from deformvit.engine.runtime import autocast

IMAGENET = 1_281_167, 1000
"""Training images and classes of ImageNet-1K."""
CPU_IMAGES = 4
"""Images of the steps that are measured on a CPU; on a GPU a whole micro-batch is measured."""


class FakeImageNet(Dataset[Any]):
    """Noise of ImageNet-1K's size, to plan a run before the images are there.

    Args:
        size: height and width of the images, in pixels.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.classes = [str(i) for i in range(IMAGENET[1])]

    def __len__(self) -> int:
        return IMAGENET[0]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.randn(3, self.size, self.size), index % IMAGENET[1]


def fake_data(config: BaseConfig) -> FakeImageNet | None:
    """Fake data for a run on ImageNet, None for others."""
    if isinstance(config, ClassificationConfig) and config.data.root == "imagenet":
        return FakeImageNet(config.data.img_size)
    return None


def show(task: Task, config: BaseConfig) -> None:
    """Print configuration, parameter groups, steps, and estimates of memory and time from measured steps."""
    print("Configuration")
    print_values([(name, repr(value)) for name, value in options(config).items()])
    share, steps = sharing(config), steps_per_epoch(task.train_set, config)
    total, device = total_steps(config, steps), pick_device(config.run.device)
    model = task.build_model().to(device)
    replica = Replica(model, task.body(model), config, device)
    optimizer = build_optimizer(replica.model, config)
    print("\nParameter groups")
    names = {parameter: name for name, parameter in replica.model.named_parameters()}
    for group in optimizer.param_groups:
        count = sum(parameter.numel() for parameter in group["params"])
        scale = f", rate x {group['lr_scale']:.3g}" if "lr_scale" in group else ""
        print(
            f"  {len(group['params'])} tensors, {count / 1e6:.2f} M, weight decay {group['weight_decay']:g}{scale}: "
            f"{names[group['params'][0]]} ..."
        )
    print("\nSteps")
    count = len(task.train_set)  # type: ignore[arg-type]
    divided = f"{share.size} processes x {share.accumulate} batches x {share.micro} images"
    note = " (fake data: the images are not there)" if isinstance(task.train_set, FakeImageNet) else ""
    print_values(
        [
            ("training images", f"{count:,}{note}"), ("a step", f"{config.data.batch_size} images = {divided}"),
            ("an epoch", f"{steps:,} steps"), ("the run", f"{total:,} steps"),
            ("warm-up", f"{warmup_steps(config, steps):,} steps"),
            ("peak rate", f"{max(group['lr'] for group in optimizer.param_groups):.3g}"),
        ]
    )  # fmt: skip
    measured = share.micro if device.type == "cuda" else min(share.micro, CPU_IMAGES)
    seconds, activations = _measure(task, replica, config, device, measured)
    fixed = sum(p.numel() * p.element_size() * (4 if p.requires_grad else 1) for p in replica.model.parameters())
    fixed += sum(p.numel() * p.element_size() for p in replica.average.parameters()) if replica.average else 0
    fixed //= share.size if replica.sharded else 1
    images = total * config.data.batch_size / share.size
    print(f"\nEstimates for {device}, from a step of {measured} images")
    print_values(
        [
            ("weights, gradients, moments", f"{fixed / 2**30:.2f} GiB a process"),
            ("activations", f"{activations / measured * share.micro / 2**30:.2f} GiB for {share.micro} images"),
            ("an image", f"{1000 * seconds / measured:.1f} ms, {measured / seconds:.1f} images/s"),
            ("the run", f"{images * seconds / measured / 3600:,.1f} hours without loading and evaluation"),
        ]
    )


def _measure(task: Task, replica: Replica, config: BaseConfig, device: torch.device, count: int) -> tuple[float, int]:
    """Seconds of forward and backward on ``count`` images, and bytes that forward keeps for backward."""
    replica.model.train()
    weights = {p.untyped_storage().data_ptr() for p in replica.model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in weights:
            kept[address] = tensor
        return tensor

    seconds = []
    for attempt in range(3):
        batch = task.collate([task.train_set[i] for i in range(count)])
        _wait(device)
        began = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(keep if attempt == 0 else _identity, _identity):
            with autocast(device, config.run.amp):
                losses = task.losses(replica.wrapped, batch, device)
            loss = torch.stack([value.float() for value in losses.values()]).sum()
        if attempt == 0:
            kept_bytes = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
            kept.clear()
        loss.backward()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:]), kept_bytes


def _identity(tensor: Tensor) -> Tensor:
    return tensor


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
