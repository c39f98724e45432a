"""Where a run's numbers go: metrics.jsonl for programs, TensorBoard for eyes."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter


class MetricsLog:
    """Appends one JSON object per epoch to ``metrics.jsonl`` and its numbers to TensorBoard.

    Lines of epochs from ``first_epoch`` on, which a resumed run will write again, are dropped. Where it is not
    ``active``, in all processes but one, it does nothing.
    """

    def __init__(self, folder: Path, first_epoch: int = 0, active: bool = True) -> None:
        self._board: SummaryWriter | None = None
        self.path = folder / "metrics.jsonl"
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        kept = []
        if first_epoch and self.path.is_file():
            for line in self.path.read_text().splitlines():
                try:
                    if json.loads(line)["epoch"] < first_epoch:
                        kept.append(line + "\n")
                except (ValueError, KeyError):  # the last line of a killed run may be cut
                    continue
        self.path.write_text("".join(kept))
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
