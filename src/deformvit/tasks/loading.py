"""Images that processes share in evaluation."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset, Subset

from deformvit import parallel


def shared(images: Dataset[Any]) -> Subset[Any]:
    """The images that this process evaluates: every n-th of n processes."""
    count = len(images)  # type: ignore[arg-type]
    return Subset(images, range(parallel.rank(), count, parallel.size()))
