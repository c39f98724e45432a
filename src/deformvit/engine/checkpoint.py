"""Training state on disk: written whole or not at all, read without executing anything."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import torch

from deformvit.errors import UserError
from deformvit.storage import write_atomically


class CheckpointError(UserError):
    """A checkpoint cannot be used; the message says which and why."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a training state atomically."""
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def load(path: Path) -> dict[str, Any]:
    """Read a training state onto the CPU.

    Raises:
        CheckpointError: the file is missing, damaged, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError,
        OSError, struct.error,
    ) as error:  # fmt: skip
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason})") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: expected a mapping, found {type(state).__name__}")
    return state
