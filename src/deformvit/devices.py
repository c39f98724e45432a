"""The device that a command or a predictor computes on."""

from __future__ import annotations

import torch

from deformvit.errors import UserError


def pick_device(name: str) -> torch.device:
    """``auto`` is the GPU if there is one, under torchrun that of this process, else the CPU.

    Raises:
        UserError: a device that torch does not know or this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
