"""The model of a run in one process or many: PyTorch's wrapper, the average of the weights, unsharded weights."""

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

MIN_SHARD_UNIT = 500_000
"""Parameters of the smallest block that fully_shard gathers and frees separately."""


class Replica:
    """The model that is trained, in this process.

    Args:
        model: on its device.
        body: the part of it (or all of it) that is compiled, recomputed and sharded by blocks.
        config: the run.
        device: of the model.

    Raises:
        UserError: ``run.grad_checkpointing`` for a model that does not support it.
    """

    def __init__(self, model: nn.Module, body: nn.Module, config: BaseConfig, device: torch.device) -> None:
        run = config.run
        self.sharded = run.parallel == "fsdp" and distributed.size() > 1
        if run.channels_last:
            model = model.to(memory_format=torch.channels_last)
        if run.grad_checkpointing:
            enable: Callable[[], None] | None = getattr(body, "set_grad_checkpointing", None)
            if enable is None:
                raise UserError(f"run.grad_checkpointing: {type(body).__name__} cannot recompute its blocks")
            enable()
        self._unsharded = copy.deepcopy(model) if self.sharded else None
        """Receives all weights, to evaluate and to save them."""
        self.average: nn.Module | None = copy.deepcopy(model).requires_grad_(False) if run.ema else None
        self.decay = run.ema
        if run.compile:
            body.compile()
        if self.sharded:
            mesh = init_device_mesh(device.type, (distributed.size(),))
            path = next(name for name, module in model.named_modules() if module is body)
            for each in (model, self.average):
                if each is not None:
                    _shard(each, each.get_submodule(path), mesh)
        self.model = model
        """The module without PyTorch's wrapper: its parameters have the model's names."""
        self.wrapped: nn.Module = model
        """Called in training; DistributedDataParallel where there is one."""
        if distributed.size() > 1 and not self.sharded:
            if device.type == "cuda":
                self.model = model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
            ids = [device.index] if device.type == "cuda" else None
            self.wrapped = DistributedDataParallel(model, device_ids=ids)

    @contextlib.contextmanager
    def accumulating(self, last: bool) -> Any:
        """A micro-batch of a step; processes exchange gradients in the last one only."""
        if isinstance(self.wrapped, DistributedDataParallel) and not last:
            with self.wrapped.no_sync():
                yield
            return
        if isinstance(self.wrapped, FSDPModule):
            self.wrapped.set_requires_gradient_sync(last)
        yield

    @torch.no_grad()
    def update_average(self) -> None:
        """Update the exponential moving average of the weights; running statistics are copied."""
        if self.average is None:
            return
        averaged, current = list(self.average.parameters()), [p.detach() for p in self.model.parameters()]
        local = [(_local(a), _local(c)) for a, c in zip(averaged, current, strict=True)]
        get_ema_multi_avg_fn(self.decay)([a for a, _ in local], [c for _, c in local], 0)
        for mean, buffer in zip(self.average.buffers(), self.model.buffers(), strict=True):
            mean.copy_(buffer)

    def eval_model(self) -> nn.Module:
        """The model to evaluate and to save, unsharded: the average where there is one. All processes call it."""
        source = self.average if self.average is not None else self.model
        if self._unsharded is None:
            return source
        self._unsharded.load_state_dict({name: _full(tensor) for name, tensor in source.state_dict().items()})
        return self._unsharded

    def tensors(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """The tensors of a checkpoint by name: model, average and optimiser; to save, or to load into."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            state = optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{name}.{key}": value for key, value in state.items()}
        return tensors


def fill_state(optimizer: torch.optim.Optimizer) -> None:
    """Create the state of an optimiser that has not stepped yet, to load a checkpoint into; weights do not change."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def clip_gradients(parameters: list[nn.Parameter], max_norm: float) -> Tensor:
    """Norm of all gradients together, a scalar; if ``max_norm`` is positive, they are scaled down to it."""
    return _full(nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else torch.inf))


def _shard(model: nn.Module, body: nn.Module, mesh: Any) -> None:
    """fully_shard the blocks of the body, then the rest of the model as one.

    Heads are not sharded by blocks: they call submodules of their blocks, which fully_shard does not support.
    """
    for module in reversed(list(body.modules())):
        if isinstance(module, nn.ModuleList | nn.Sequential):
            for child in module:
                shardable = not isinstance(child, nn.ModuleList | FSDPModule)
                if shardable and sum(p.numel() for p in child.parameters()) >= MIN_SHARD_UNIT:
                    fully_shard(child, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
