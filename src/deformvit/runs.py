"""What a training run writes into its folder, read in one place."""

from __future__ import annotations

import json
from pathlib import Path

CONFIG = "config.json"
"""The configuration of a run."""
METRICS = "metrics.jsonl"
"""The log of a run: one JSON object a line, for every epoch."""


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The epochs that a run has logged, in order; empty where there is no log.

    A killed run may leave a truncated last line; lines that are not the metrics of an epoch are skipped.
    """
    path = folder / METRICS
    if not path.is_file():
        return []
    epochs = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("epoch"), int):
            epochs.append(entry)
    return epochs
