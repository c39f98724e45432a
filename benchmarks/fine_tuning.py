"""`deformvit train folder` without options, beside the loop that a user of timm would write: accuracy on small sets.

python benchmarks/fine_tuning.py DATA [--sets cifar50 three tin100] [--seeds 0 1 2 3 4] [--img-size 32]

DATA holds cifar10/{train,test}.parquet and tin50/{train,val}.parquet. Photos of three sets are written as folders:

- cifar50: the 10 classes of CIFAR-10 x 50 photos of its training images, 100 of each class of its test images; both
  ways keep the packaged classifier, timm because there are as many classes, ours because they have the same names;
- three: cats, dogs and horses x 100, 200 of each of the test images, in folders with numbers: the classifier is new;
- tin100: 50 classes of Tiny ImageNet x 100 photos of 64 x 64, 50 of each to validate.

Accuracy is that of the last epoch: no run is chosen by its validation images.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import timm
import torch
from timm.data import create_transform, resolve_data_config
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import deformvit
from deformvit import recipes
from deformvit.config import ClassificationConfig
from deformvit.engine import loop
from deformvit.tasks.classification import Classification

SETS: dict[str, tuple[str, tuple[str, str], list[int] | None, int, int]] = {
    "cifar50": ("cifar10", ("train", "test"), None, 50, 100),
    "three": ("cifar10", ("train", "test"), [3, 5, 7], 100, 200),
    "tin100": ("tin50", ("train", "val"), None, 100, 50),
}
"""Source, its training and validation file, classes, training and validation photos of each class."""


def write(data: Path, name: str, folder: Path) -> Path:
    """A set as folders of photos, the same at every call."""
    source, files, classes, *counts = SETS[name]
    root, draw, known = folder / name, random.Random(0), deformvit.load("dat_nano.cifar10", device="cpu").classes
    for split, file, count in zip(("train", "val"), files, counts, strict=True):
        table = pq.read_table(data / source / f"{file}.parquet")
        rows: dict[int, list[int]] = {}
        for row, label in enumerate(table["label"].to_pylist()):
            rows.setdefault(label, []).append(row)
        for label in classes or sorted(rows):
            place = root / split / (known[label] if name == "cifar50" else f"{label:03d}")
            place.mkdir(parents=True, exist_ok=True)
            for row in draw.sample(rows[label], count):
                (place / f"{row}.png").write_bytes(table["image"][row].as_py()["bytes"])
    return root


def plain(root: Path, size: int, epochs: int, seed: int) -> float:
    """AdamW at 5e-4, no augmentation, no schedule: what a user writes first."""
    torch.manual_seed(seed)
    model = timm.create_model("dat_nano", pretrained=True, num_classes=len(list((root / "train").iterdir())))
    config = resolve_data_config({"input_size": (3, size, size)}, model=model)
    train, val = (ImageFolder(str(root / split), create_transform(**config)) for split in ("train", "val"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    for _ in range(epochs):
        for images, labels in DataLoader(train, 32, shuffle=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    model.eval()
    hits = 0
    with torch.inference_mode():
        for images, labels in DataLoader(val, 256):
            hits += int((model(images).argmax(1) == labels).sum())
    return 100 * hits / len(val)


def ours(root: Path, size: int, runs: Path, seed: int) -> float:
    """The recipe `folder` as it is, but for seed and output."""
    config = recipes.ALL["folder"]()
    assert isinstance(config, ClassificationConfig)
    config.data.root, config.data.img_size, config.data.workers = str(root), size, 0
    config.run.seed, config.run.progress, config.run.output = seed, False, runs / f"{root.name}-{size}-{seed}"
    config.run.eval_every = 10**6  # the last epoch only
    return loop.fit(Classification(config), config)["top1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--img-size", type=int, default=32)
    parser.add_argument("--work", type=Path, default=Path("runs/fine-tuning"))
    options = parser.parse_args()
    print(f"deformvit {deformvit.__version__}, torch {torch.__version__}, timm {timm.__version__}")
    for name in options.sets:
        root = write(options.data, name, options.work)
        size = options.img_size
        methods: dict[str, Callable[[int], float]] = {
            f"plain loop, {epochs} epochs": partial(plain, root, size, epochs) for epochs in (1, 3, 10)
        }
        methods["train folder"] = partial(ours, root, size, options.work / "runs")
        for method, run in methods.items():
            began = time.perf_counter()
            found = [run(seed) for seed in options.seeds]
            seconds = (time.perf_counter() - began) / len(found)
            spread = statistics.stdev(found) if len(found) > 1 else 0.0
            each = " ".join(f"{value:.1f}" for value in found)
            line = f"{name:8} {size} px {method:22} {statistics.mean(found):.1f} +- {spread:.1f} % ({each})"
            print(f"{line}, {seconds:.0f} s a run", flush=True)


if __name__ == "__main__":
    main()
