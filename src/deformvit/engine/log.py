"""What a run reports: sums of losses, which stay on the device until they are read, and the log of its epochs."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from deformvit import distributed
from deformvit.runs import METRICS, read_metrics
from deformvit.storage import write_atomically


class LossSums:
    """Sums of an epoch's losses in this process. Adding queues work on the device; only reading waits for it.

    Args:
        device: of the losses.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self._sums: dict[str, Tensor] = {}
        self.steps = 0
        """Steps whose losses were added."""

    def add(self, losses: dict[str, Tensor]) -> None:
        """Add the losses of a step, scalars on the device."""
        for name, value in losses.items():
            value = value.detach().to(self._dtype)
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self.steps += 1

    def read(self) -> dict[str, float]:
        """The sums of this process, in one transfer from the device."""
        return dict(zip(self._sums, torch.stack([*self._sums.values()]).tolist(), strict=True)) if self._sums else {}

    def total(self) -> tuple[dict[str, float], int]:
        """Sums and steps of all processes, which call it together."""
        everyone = distributed.gather((self.read(), self.steps))
        names = dict.fromkeys(name for sums, _ in everyone for name in sums)
        return {name: sum(sums.get(name, 0.0) for sums, _ in everyone) for name in names}, sum(n for _, n in everyone)

    def restore(self, sums: dict[str, float], steps: int) -> None:
        """Go on from sums that were read."""
        self._sums = {name: torch.tensor(value, dtype=self._dtype, device=self._device) for name, value in sums.items()}
        self.steps = steps


class MetricsLog:
    """Appends one JSON object per epoch to ``metrics.jsonl`` and its numbers to TensorBoard.

    Args:
        folder: of the run.
        first_epoch: the epoch that the run goes on with. Lines of this and later epochs, which it writes again, are
            dropped.
        active: false in all processes but one, where the log does nothing.
    """

    def __init__(self, folder: Path, first_epoch: int = 0, active: bool = True) -> None:
        self._board: SummaryWriter | None = None
        self.path = folder / METRICS
        if not active:
            return
        kept = [json.dumps(entry) + "\n" for entry in read_metrics(folder) if entry["epoch"] < first_epoch]
        write_atomically(self.path, lambda path: path.write_text("".join(kept)))
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_epoch)

    def write(self, epoch: int, metrics: dict[str, float]) -> None:
        """Record the metrics of an epoch, counted from 0."""
        if self._board is None:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"epoch": epoch, **metrics}) + "\n")
        for name, value in metrics.items():
            self._board.add_scalar(name, value, epoch)
        self._board.flush()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._board is not None:
            self._board.close()
