"""The model of a run on one process or many: what PyTorch wraps it in, its average, its weights in one piece."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from deformvit import distributed
from deformvit.config import BaseConfig
from deformvit.errors import UserError

UNIT = 500_000
"""Parameters from which a block is gathered and freed on its own under fully_shard."""


class Replica:
    """The model that is trained, in this process.

    Args:
        model: on its device.
        body: the part of it (or all of it) that compilation, recomputation and sharding concern.
        config: the run.
        device: of the model.

    Raises:
        UserError: options that exclude one another, or that the model does not have.
    """

    def __init__(self, model: nn.Module, body: nn.Module, config: BaseConfig, device: torch.device) -> None:
        run = config.run
        self.sharded = run.parallel == "fsdp" and distributed.size() > 1
        if self.sharded and run.amp == "fp16":
            raise UserError("run.amp fp16 scales losses, which is not supported with run.parallel fsdp; take bf16")
        if run.channels_last:
            model = model.to(memory_format=torch.channels_last)
        if run.grad_checkpointing:
            enable: Callable[[], None] | None = getattr(body, "set_grad_checkpointing", None)
            if enable is None:
                raise UserError(f"run.grad_checkpointing: {type(body).__name__} cannot recompute its blocks")
            enable()
        self._plain = copy.deepcopy(model) if self.sharded else None
        """Takes whole weights to evaluate and to save them."""
        self.average: nn.Module | None = copy.deepcopy(model).requires_grad_(False) if run.ema else None
        self.decay = run.ema
        if run.compile:
            body.compile()
        if self.sharded:
            mesh = init_device_mesh(device.type, (distributed.size(),))
            place = next(name for name, module in model.named_modules() if module is body)
            for each in (model, self.average):
                if each is not None:
                    _shard(each, each.get_submodule(place), mesh)
        self.model = model
        """The module itself: names of its parameters are those of the model."""
        self.wrapped: nn.Module = model
        """What forward passes of training go through."""
        if distributed.size() > 1 and not self.sharded:
            if device.type == "cuda":
                self.model = model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
            ids = [device.index] if device.type == "cuda" else None
            self.wrapped = DistributedDataParallel(model, device_ids=ids)

    @contextlib.contextmanager
    def accumulating(self, last: bool) -> Any:
        """Gradients are exchanged with the last micro-batch of a step only."""
        if isinstance(self.wrapped, DistributedDataParallel) and not last:
            with self.wrapped.no_sync():
                yield
            return
        if isinstance(self.wrapped, FSDPModule):
            self.wrapped.set_requires_gradient_sync(last)
        yield

    @torch.no_grad()
    def update_average(self) -> None:
        """The exponential moving average takes in the weights; running statistics are copied."""
        if self.average is None:
            return
        averaged, current = list(self.average.parameters()), [p.detach() for p in self.model.parameters()]
        local = [(_local(a), _local(c)) for a, c in zip(averaged, current, strict=True)]
        get_ema_multi_avg_fn(self.decay)([a for a, _ in local], [c for _, c in local], 0)
        for mean, buffer in zip(self.average.buffers(), self.model.buffers(), strict=True):
            mean.copy_(buffer)

    def to_use(self) -> nn.Module:
        """The model to evaluate and to save: the average where there is one, in one piece; all processes call it."""
        source = self.average if self.average is not None else self.model
        if self._plain is None:
            return source
        weights = {name: _whole(tensor) for name, tensor in source.state_dict().items()}
        self._plain.load_state_dict(weights)
        return self._plain

    def tensors(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Everything that training goes on from, by name; to save, or to be read into."""
        found = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.average is not None:
            found |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            state = optimizer.state.get(parameter, {})
            found |= {f"optimizer.{name}.{key}": value for key, value in state.items()}
        return found


def fill_state(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimiser that has not stepped yet the state that a checkpoint is read into; weights stay."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def norm(parameters: list[nn.Parameter], largest: float) -> Tensor:
    """Norm of all gradients, which are scaled down to the largest allowed if that is positive."""
    total = nn.utils.clip_grad_norm_(parameters, largest if largest > 0 else torch.inf)
    return total.full_tensor() if isinstance(total, DTensor) else total


def _shard(model: nn.Module, body: nn.Module, mesh: Any) -> None:
    """fully_shard the blocks of the body, then the rest of the model; heads call parts of parts, which units forbid."""
    for module in reversed(list(body.modules())):
        if isinstance(module, nn.ModuleList | nn.Sequential):
            for child in module:
                shardable = not isinstance(child, nn.ModuleList | FSDPModule)
                if shardable and sum(p.numel() for p in child.parameters()) >= UNIT:
                    fully_shard(child, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
