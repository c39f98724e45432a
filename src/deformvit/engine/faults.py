"""What can end a run early, a signal or a non-finite loss; all processes decide alike."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import torch
from torch import Tensor, nn
from torch import distributed as torch_distributed
from torch.distributed.tensor import DTensor

from deformvit import distributed
from deformvit.errors import UserError


class NonFiniteLoss(UserError):
    """A loss or gradient became infinite or NaN."""


class Stopped(UserError):
    """The run received SIGTERM; its state is written."""

    exit_code = 128 + signal.SIGTERM


class StopSignal:
    """A context in which SIGTERM sets ``received`` instead of ending the process, so that a run ends between steps."""

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> StopSignal:
        self._before = None
        if threading.current_thread() is threading.main_thread():  # the only one in which Python sets handlers
            self._before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def _receive(self, _number: int, _frame: FrameType | None) -> None:
        self.received = True

    def __exit__(self, *_error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)


def any_process(device: torch.device, *flags: Tensor | bool) -> list[bool]:
    """Whether each flag is set in any process: one exchange, and one wait for the device."""
    joined = torch.stack([torch.as_tensor(flag, device=device).float().reshape(()) for flag in flags])
    if distributed.size() > 1:
        torch_distributed.all_reduce(joined, torch_distributed.ReduceOp.MAX)
    return [value > 0 for value in joined.tolist()]


def describe_nonfinite(model: nn.Module, losses: dict[str, Tensor]) -> str:
    """The losses, and which weights and gradients are not finite."""
    described = [", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())]
    for what in ("weight", "gradient"):
        tensors = {name: p if what == "weight" else p.grad for name, p in model.named_parameters()}
        names = [name for name, tensor in tensors.items() if tensor is not None and not _finite(tensor)]
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            described.append(f"{what} of {names[0]}{more} not finite")
    return "; ".join(described)


def _finite(tensor: Tensor) -> bool:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return bool(torch.isfinite(local.detach()).all())
