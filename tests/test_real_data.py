"""The packaged weights on the real images they were trained for; skipped where ../shared/data is absent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from deformvit import load_model
from deformvit.data import eval_transform, open_split
from deformvit.tasks.classification import evaluate


def test_cifar10_is_read_whole(shared_data):
    train, val = (open_split(str(shared_data / "cifar10"), split) for split in ("train", "val"))
    assert (len(train), len(val)) == (50_000, 10_000)
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert train.classes == val.classes
    assert train.classes[3] == "cat"


def test_packaged_weights_have_the_accuracy_they_claim(shared_data):
    model, info = load_model("dat_nano.cifar10")
    transform = eval_transform(info.img_size, info.crop_pct, info.resize, info.mean, info.std)
    images = open_split(str(shared_data / "cifar10"), "val", transform)
    assert images.classes == info.classes
    batches = DataLoader(Subset(images, range(2000)), 250)
    metrics, _ = evaluate(model, batches, images.classes, torch.device("cpu"), progress=False)
    # 2,000 of the 10,000: the standard error is 0.7 points.
    assert metrics["top1"] == pytest.approx(info.metrics["top1"], abs=3)
