"""What can end a training step early: a signal, a loss that is no number; all processes decide alike."""

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
    """The loss or a gradient became infinite or not a number."""


class Stopped(UserError):
    """The run was told to stop (SIGTERM); its state is written."""

    exit_code = 128 + signal.SIGTERM


class StopSignal:
    """Notes SIGTERM instead of dying of it, so that the run ends between two steps. Use as a context."""

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> StopSignal:
        self._before = None
        if threading.current_thread() is threading.main_thread():  # Python takes handlers nowhere else
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.received = True

    def __exit__(self, *_error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)


def any_process(device: torch.device, *flags: Tensor | bool) -> list[bool]:
    """Whether each flag is set in any process; one exchange, and one wait for the device."""
    both = torch.stack([torch.as_tensor(flag, device=device).float().reshape(()) for flag in flags])
    if distributed.size() > 1:
        torch_distributed.all_reduce(both, torch_distributed.ReduceOp.MAX)
    return [value > 0 for value in both.tolist()]


def describe(model: nn.Module, parts: dict[str, Tensor]) -> str:
    """Which losses, weights and gradients are no numbers."""
    values = {name: part.detach().float().item() for name, part in parts.items()}
    told = [", ".join(f"{name} {value:.4g}" for name, value in values.items())]
    for what in ("weight", "gradient"):
        named = [(name, p if what == "weight" else p.grad) for name, p in model.named_parameters()]
        wrong = [name for name, tensor in named if tensor is not None and not _finite(tensor)]
        if wrong:
            many = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            told.append(f"{what} of {wrong[0]}{many} not finite")
    return "; ".join(told)


def _finite(tensor: Tensor) -> bool:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return bool(torch.isfinite(local.detach()).all())
