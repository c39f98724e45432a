"""What a data set holds and what is broken in it, image by image: ``deformvit data check``."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from deformvit.config import DataConfig
from deformvit.data.classification import FolderImages, open_split
from deformvit.data.detection import CocoImages, open_coco
from deformvit.data.images import decode, read_annotation, spread
from deformvit.data.label_check import LabelCounts
from deformvit.data.layouts import Layout
from deformvit.data.segmentation import SegmentationImages, open_segmentation
from deformvit.errors import DataError

T = TypeVar("T")


@dataclass
class Example:
    """An image with what is known of it."""

    name: str
    image: Image.Image
    classes: list[str]
    label: str = ""
    """Its class."""
    objects: dict[str, Tensor] | None = None
    """Boxes, labels and perhaps masks."""
    label_map: np.ndarray[Any, Any] | None = None
    """(H, W) classes from 0; others where a pixel has none."""


@dataclass
class Report:
    """A split of a data set."""

    images: int = 0
    looked_at: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """(H, W) of the images that could be read."""
    classes: dict[str, int] = field(default_factory=dict)
    """What each class has of ``unit``."""
    unit: Literal["images", "objects", "pixels"] = "images"
    objects: list[int] = field(default_factory=list)
    """Objects of each image."""
    sides: list[float] = field(default_factory=list)
    """Square roots of the areas of the boxes, in pixels."""
    masks: bool = False
    broken: list[str] = field(default_factory=list)
    """What cannot be used: a line for each image or reason."""
    remarks: list[str] = field(default_factory=list)
    """What is probably not meant."""


@dataclass
class Options:
    """How a data set is looked at."""

    limit: int = 0
    """Images of a split that are looked at, evenly spread; 0 for all."""
    examples: int = 6
    """Images of a split that are shown."""
    show: Callable[[Example], None] = lambda _example: None
    """Called for these."""
    progress: bool = False
    ignore_label: int = 255
    reduce_zero_label: bool = False


def inspect(root: str, split: Literal["train", "val"], layout: Layout, options: Options) -> Report:
    """Look at a split of a data set; images are read one at a time.

    Raises:
        DataError: the split is missing or cannot be opened.
    """
    if layout == "coco":
        return _inspect_coco(root, split, options)
    if layout == "ade20k":
        return _inspect_label_maps(root, split, options)
    return _inspect_classes(root, split, options)


def _readable(report: Report, options: Options, split: str, read: Callable[[int], T]) -> Iterator[tuple[int, T, bool]]:
    """The images to look at that can be read: index, what ``read`` returns, and whether to show it.

    The others are reported as broken.
    """
    chosen = spread(report.images, options.limit or report.images)
    report.looked_at = len(chosen)
    shown = {chosen[i] for i in spread(len(chosen), options.examples)}
    silent = not options.progress
    for index in tqdm(chosen, desc=split, unit="image", leave=False, disable=silent, dynamic_ncols=True):
        try:
            item = read(index)
        except DataError as error:
            report.broken.append(str(error))
            continue
        yield index, item, index in shown


def _inspect_classes(root: str, split: str, options: Options) -> Report:
    settings = DataConfig()  # as training holds images out
    data = open_split(root, split, holdout=settings.holdout, seed=settings.holdout_seed)
    report, counts = Report(len(data)), Counter[str]()
    if split == "val" and isinstance(data, FolderImages) and data.notice:
        report.remarks.append(data.notice)
    for index, (image, label), shown in _readable(report, options, split, data.__getitem__):
        report.sizes.append((image.height, image.width))
        counts[data.classes[label]] += 1
        if shown:
            name = Path(data.samples[index][0]).name if isinstance(data, FolderImages) else f"image {index + 1}"
            options.show(Example(name, image, data.classes, label=data.classes[label]))
    report.classes = {name: counts[name] for name in data.classes}
    return report


def _open_coco(root: str, split: str) -> CocoImages:
    """With masks if all objects have some and the library that reads them is installed."""
    if importlib.util.find_spec("faster_coco_eval"):
        try:
            return open_coco(root, split, masks=True)
        except DataError as error:
            if "no segmentation" not in str(error):
                raise
    return open_coco(root, split, masks=False)


def _inspect_coco(root: str, split: str, options: Options) -> Report:
    data = _open_coco(root, split)
    report, counts = Report(len(data), unit="objects", masks=data.masks, sides=data.sides()), Counter[str]()
    problems = data.problems
    report.broken += problems
    report.remarks += [line for line in data.warnings if line not in problems]
    for index, (image, target), shown in _readable(report, options, split, data.__getitem__):
        report.sizes.append((image.shape[1], image.shape[2]))
        report.objects.append(len(target["labels"]))
        counts.update(data.classes[label] for label in target["labels"].tolist())
        if shown:
            pixels = Image.fromarray(image.permute(1, 2, 0).numpy())
            options.show(Example(data.image_path(index).name, pixels, data.classes, objects=target))
    report.broken += [f"{count} {kind}" for kind, count in data.dropped.items()]
    report.classes = {name: counts[name] for name in data.classes}
    return report


def _inspect_label_maps(root: str, split: Literal["train", "val"], options: Options) -> Report:
    data: SegmentationImages = open_segmentation(
        root, split, ignore_label=options.ignore_label, reduce_zero_label=options.reduce_zero_label
    )
    report, counts = Report(len(data), unit="pixels"), LabelCounts(data)

    def read(index: int) -> tuple[Image.Image, np.ndarray[Any, Any]]:
        path, annotation = data.files[index]
        return decode(path, str(path)), read_annotation(annotation)

    for index, (image, values), shown in _readable(report, options, split, read):
        path, annotation = data.files[index]
        report.sizes.append((image.height, image.width))
        counts.add(annotation, values)
        if values.shape != (image.height, image.width):
            size = f"{values.shape[1]} x {values.shape[0]}"
            report.broken.append(f"{path} is {image.width} x {image.height}, but its annotation {size}")
        elif shown:
            options.show(Example(path.name, image, data.classes, label_map=data.table[values]))
    if counts.wrong:
        report.broken.append(counts.wrong)
    report.remarks += counts.problems if counts.read else []
    report.classes = dict(zip(data.classes, counts.by_class, strict=True))
    return report
