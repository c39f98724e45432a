"""Training batches, the same for every task."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from deformvit.config import BaseConfig
from deformvit.errors import UserError


def check_filled(images: Dataset[Any], config: BaseConfig) -> None:
    """Raise a UserError if there is not one whole batch of training images."""
    count, batch = len(images), config.data.batch_size  # type: ignore[arg-type]
    if count < batch:
        raise UserError(f"{config.data.root}: {count} training images do not fill a batch of {batch}")


def shuffled(images: Dataset[Any], config: BaseConfig, epoch: int, **options: Any) -> DataLoader[Any]:
    """Whole batches in an order drawn from seed and epoch alone, so that a resumed run sees the same ones.

    Args:
        options: further arguments of the loader.
    """
    generator = torch.Generator().manual_seed(config.run.seed + 1_000_003 * (epoch + 1))
    return DataLoader(
        images, config.data.batch_size, shuffle=True, drop_last=True, num_workers=config.data.workers,
        generator=generator, **options,
    )  # fmt: skip
