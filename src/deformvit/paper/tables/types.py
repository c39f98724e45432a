"""The types of a table: rows that are configurations, with what was published of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class DataSet:
    """A data set that results are of."""

    name: str
    classes: int
    folders: tuple[str, ...]
    """Names of its folder, in lower-case letters and digits alone."""

    def is_root(self, root: str) -> bool:
        """Whether ``data.root`` of a run is a folder of this data set, judged by its name."""
        return "".join(filter(str.isalnum, Path(root).name.lower())) in self.folders


IMAGENET = DataSet("ImageNet-1K", 1000, ("imagenet", "imagenet1k", "ilsvrc2012"))
COCO = DataSet("COCO", 80, ("coco", "coco2017"))
ADE20K = DataSet("ADE20K", 150, ("ade20k", "adechallengedata2016"))
CIFAR10 = DataSet("CIFAR-10", 10, ("cifar10",))


@dataclass(frozen=True)
class Column:
    """A column of results."""

    label: str
    metric: str = ""
    """Key in ``metrics.jsonl``; empty if training does not measure it."""


@dataclass(frozen=True)
class Row:
    """A line of a table: a configuration, and the published values in the paper's digits."""

    label: str
    model: str = ""
    """Name of a classification model registered with timm."""
    args: dict[str, Any] = field(default_factory=dict)
    """Arguments of that model."""
    recipe: str = ""
    """Of a detection or segmentation system, the recipe that trains it. Without model and recipe, only published
    values are known."""
    params: str = ""
    """Published millions of parameters."""
    mult_adds: str = ""
    """Published billions of multiply-adds, which the paper calls FLOPs."""
    results: tuple[str, ...] = ()
    """Published results in the table's columns."""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table or figure of the paper, or one like it."""

    title: str
    data: DataSet
    rows: tuple[Row, ...]
    columns: tuple[Column, ...] = (Column("top-1", "top1"),)
    """Of the results; the first decides which evaluation of a run is the best."""
    note: str = ""
    image: tuple[int, int] | None = None
    """(H, W) of the image that multiply-adds are of; None for the nominal size of each row's model."""
    activations: bool = False
    """Show the memory of activations."""
    strided_keys: bool = False
    """Show multiply-adds with keys at every second row and column of stages 3 and 4 too."""
