"""Images with boxes and masks in COCO's format, checked when they are opened."""

from __future__ import annotations

import itertools
import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from deformvit.data.annotations import (
    NO_MASK,
    Segmentation,
    Unusable,
    read_box,
    read_coco,
    read_segmentation,
    run_lengths,
)
from deformvit.data.images import decode, image_size
from deformvit.errors import DataError

Target = dict[str, Tensor]
Transform = Callable[[tv_tensors.Image, Target], tuple[Tensor, Target]]


class _Objects(NamedTuple):
    """What an image shows, unclipped. Arrays, as processes that load images then share them instead of copying."""

    boxes: array[float]
    """x, y, width, height of one object after the other."""
    labels: array[int]
    masks: list[Segmentation]
    """As many as labels, or none if masks are not read."""


class CocoImages(Dataset[Any]):
    """Images with boxes, labels and optionally masks; ``open_coco`` finds the files of a data set.

    An item is an image and its target, or what ``transform`` makes of the two:

    - the image, uint8 (3, H, W);
    - ``boxes`` float32 (N, 4), x1, y1, x2, y2 in pixels, clipped to the image;
    - ``labels`` int64 (N,), from 0, places in ``classes``;
    - ``masks`` uint8 (N, H, W), 0 or 1, if masks are read;
    - ``image_id`` int64 ().

    Crowd annotations are left out: they matter in evaluation only, which reads the file itself. Images without objects
    stay. Objects that no training can use are left out and counted, ``problems``.

    Args:
        ground_truth: the JSON file.
        folder: images; ``file_name`` of the JSON is relative to it.
        transform: called with the image and its target.
        masks: whether to read masks.
        classes: names in the order of their labels, for a model that knows them; by default the categories of the file
            in order of their ids.

    Raises:
        DataError: a damaged file, missing images, categories that are not in ``classes``, no masks to read.
    """

    def __init__(
        self,
        ground_truth: Path,
        folder: Path,
        transform: Transform | None = None,
        masks: bool = True,
        classes: list[str] | None = None,
    ) -> None:
        self.ground_truth, self.folder, self.transform, self.masks = ground_truth, folder, transform, masks
        self.dropped: Counter[str] = Counter()
        """What was found while images were read, by kind. Loader processes count for themselves."""
        self._left_out: dict[str, list[Any]] = {}
        content = read_coco(ground_truth)
        self.classes: list[str]
        """Names of the labels."""
        self.category_ids: list[int]
        """Category id of every label; ids above those of the file where the file lacks a class."""
        self.classes, self.category_ids = _labels(ground_truth, content["categories"], classes)
        self.image_ids: list[int] = []
        """Id of every image."""
        self._names: list[str] = []
        self._sizes: list[tuple[int, int] | None] = []
        self._listed_twice = self._read_images(content["images"])
        self._check_files()
        self._objects = [_Objects(array("d"), array("q"), []) for _ in self.image_ids]
        self._read_annotations(content["annotations"])

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Any:
        path = self.image_path(index)
        picture = decode(path, str(path))
        height, width = picture.height, picture.width
        if self._sizes[index] not in (None, (height, width)):
            self._drop("images of another size than the JSON says", 1)
        objects = self._objects[index]
        boxes = torch.tensor(objects.boxes, dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes[:, 0::2] = boxes[:, 0::2].clamp(0, width)
        boxes[:, 1::2] = boxes[:, 1::2].clamp(0, height)
        boxes = boxes.float()
        kept = torch.nonzero((boxes[:, 2:] > boxes[:, :2]).all(1)).flatten().tolist()
        self._drop("objects outside the image", len(boxes) - len(kept))
        target: Target = {}
        if self.masks:
            read = [(place, self._mask(objects.masks[place], height, width)) for place in kept]
            found = {place: mask for place, mask in read if mask is not None}
            self._drop("objects without a usable mask", len(kept) - len(found))
            kept = list(found)
            stacked = np.stack([*found.values()]) if found else np.zeros((0, height, width), np.uint8)
            target["masks"] = tv_tensors.Mask(torch.from_numpy(stacked))
        target["boxes"] = tv_tensors.BoundingBoxes(boxes[kept], format="XYXY", canvas_size=(height, width))
        target["labels"] = torch.tensor(objects.labels, dtype=torch.int64)[kept]
        target["image_id"] = torch.tensor(self.image_ids[index], dtype=torch.int64)
        image = functional.to_image(picture)
        return self.transform(image, target) if self.transform else (image, target)

    @property
    def problems(self) -> list[str]:
        """What was left out when the file was opened and why, a line for each reason."""
        name = self.ground_truth.name
        twice = self._listed_twice
        lines = [f"{name}: {twice} image{'s are' if twice > 1 else ' is'} listed again"] if twice else []
        for reason, ids in self._left_out.items():
            many = len(ids) > 1
            shown = ", ".join(map(str, ids[:3])) + (", ..." if len(ids) > 3 else "")
            lines.append(
                f"{name}: {len(ids)} annotation{'s' * many} {reason} {'were' if many else 'was'} left out "
                f"(annotation id{'s' * many} {shown})"
            )
        return lines

    def image_path(self, index: int) -> Path:
        """File of an image."""
        return self.folder / self._names[index]

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image in pixels, from its file, which is not decoded.

        Raises:
            DataError: the file cannot be read as an image.
        """
        return image_size(self.image_path(index))

    def _drop(self, kind: str, count: int) -> None:
        if count:
            self.dropped[kind] += count

    def _mask(self, segmentation: Segmentation, height: int, width: int) -> np.ndarray[Any, Any] | None:
        """uint8 (H, W), or None if there is nothing of the object in the image."""
        from faster_coco_eval.core import mask

        try:
            pixels = mask.decode(run_lengths(segmentation, height, width))
        except ValueError:  # of another size; damage was found before
            return None
        return pixels if pixels.any() else None

    def _read_images(self, images: list[Any]) -> int:
        """Fills the lists of images; returns how many entries repeat an earlier one."""
        seen: dict[int, str] = {}
        for entry in images:
            number, name = (entry.get("id"), entry.get("file_name")) if isinstance(entry, dict) else (None, None)
            if type(number) is not int or not isinstance(name, str) or not name:
                raise DataError(
                    f"{self.ground_truth}: images need a whole number as id and a file_name, found {entry!r}"
                )
            if seen.setdefault(number, name) != name:
                raise DataError(f"{self.ground_truth}: image id {number} belongs to {seen[number]} and to {name}")
            if len(seen) > len(self.image_ids):
                size = (entry.get("height"), entry.get("width"))
                self.image_ids.append(number)
                self._names.append(name)
                self._sizes.append(size if all(type(side) is int and side > 0 for side in size) else None)
        return len(images) - len(seen)

    def _check_files(self) -> None:
        """All images must be there; folders are listed once, as asking file by file is slow on network disks."""
        present: dict[str, set[str]] = {}
        missing = []
        for name in self._names:
            inner, _, file = name.rpartition("/")
            if inner not in present:
                parent = self.folder / inner
                present[inner] = {found.name for found in os.scandir(parent)} if parent.is_dir() else set()
            if file not in present[inner]:
                missing.append(name)
        if missing:
            raise DataError(
                f"{self.folder / missing[0]}: no such image; {len(missing)} of {len(self._names)} images of "
                f"{self.ground_truth} are missing"
            )

    def _read_annotations(self, annotations: list[Any]) -> None:
        """Fills the objects of the images, emptying the list: that of COCO takes gigabytes."""
        if self.masks:
            import faster_coco_eval.core.mask  # noqa: F401  # if it is not installed, then said now
        places = {number: place for place, number in enumerate(self.image_ids)}
        labels = {number: label for label, number in enumerate(self.category_ids)}
        seen: set[Any] = set()
        annotations.reverse()
        while annotations:
            annotation = annotations.pop()
            if not isinstance(annotation, dict):
                raise DataError(f"{self.ground_truth}: annotations must be objects, found {annotation!r}")
            try:
                self._read_annotation(annotation, places, labels, seen)
            except Unusable as reason:
                self._left_out.setdefault(str(reason), []).append(annotation.get("id", "none"))
        bare = self._left_out.get(NO_MASK, [])
        if bare and not any(objects.labels for objects in self._objects):
            raise self._boxes_only(bare[0])

    def _read_annotation(
        self, annotation: dict[str, Any], places: dict[int, int], labels: dict[int, int], seen: set[Any]
    ) -> None:
        number, image, category = (annotation.get(name) for name in ("id", "image_id", "category_id"))
        if type(image) is not int or image not in places:
            raise Unusable("of an unknown image")
        if type(category) is not int or category not in labels:
            raise Unusable("of an unknown category")
        if isinstance(number, int | str):
            if number in seen:
                raise Unusable("with the id of an earlier one")
            seen.add(number)
        if annotation.get("iscrowd"):
            return
        place = places[image]
        box = read_box(annotation.get("bbox"))
        if box[2] <= 0 or box[3] <= 0:
            raise Unusable("with a box without area")
        left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
        if right <= 0 or bottom <= 0 or not self._true_of_image(place, lambda h, w: left < w and top < h):
            raise Unusable("with a box outside the image")
        if self.masks:
            if annotation.get("segmentation") is None:
                raise self._boxes_only(number)
            segmentation = read_segmentation(annotation["segmentation"])
            if isinstance(segmentation, dict):
                size = tuple(segmentation["size"])
                if not self._true_of_image(place, lambda h, w: size == (h, w)):
                    raise Unusable("with a mask of another size than the image")
            self._objects[place].masks.append(segmentation)
        self._objects[place].boxes.extend(box)
        self._objects[place].labels.append(labels[category])

    def _true_of_image(self, place: int, test: Callable[[int, int], bool]) -> bool:
        """Whether height and width of an image pass a test; where the JSON's do not, the file is asked."""
        size = self._sizes[place]
        if size is not None and test(*size):
            return True
        try:
            return test(*self.size(place))
        except DataError:
            return True  # said when the image is read

    def _boxes_only(self, number: Any) -> DataError:
        return DataError(
            f"{self.ground_truth}: annotation {number} has a box but no segmentation; a model of masks needs the masks "
            f"of all objects, choose one of boxes (retinanet) for this data"
        )


def _labels(path: Path, categories: list[Any], classes: list[str] | None) -> tuple[list[str], list[int]]:
    """Names and category ids in the order of the labels."""
    names: dict[int, str] = {}
    for entry in categories:
        number, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if type(number) is not int or not isinstance(name, str):
            raise DataError(f"{path}: categories need a whole number as id and a name, found {entry!r}")
        if number in names or name in names.values():
            raise DataError(f"{path}: two categories have the id {number} or the name {name}")
        names[number] = name
    if classes is None:
        return [names[number] for number in sorted(names)], sorted(names)
    unknown = [name for name in names.values() if name not in classes]
    if unknown:
        raise DataError(
            f"{path}: categories {', '.join(unknown)} are unknown to the model, which knows {', '.join(classes)}"
        )
    numbers = {name: number for number, name in names.items()}
    free = itertools.count(max(names) + 1)
    return list(classes), [numbers[name] if name in numbers else next(free) for name in classes]


def open_coco(
    root: str, split: str, transform: Transform | None = None, masks: bool = True, classes: list[str] | None = None
) -> CocoImages:
    """The images of a split ("train" or "val").

    Args:
        root: a folder with ``train.json`` and ``train/``, or, as COCO is distributed, with
            ``annotations/instances_train2017.json`` and ``train2017/`` of any year or none.
        transform: see :class:`CocoImages`, as the following.

    Raises:
        DataError: nothing there, with what was looked for; see :class:`CocoImages` for more.
    """
    path = Path(root)
    if not path.is_dir():
        raise DataError(f"data.root {root!r}: no such folder")
    found = [(path / f"{split}.json", path / split)]
    for file in sorted((path / "annotations").glob(f"instances_{split}*.json")):
        part = file.stem.removeprefix("instances_")
        if re.fullmatch(rf"{split}\d*", part):  # not COCO's valminusminival2014
            found.append((file, path / part))
    found = [(file, folder) for file, folder in found if file.is_file()]
    if not found:
        raise DataError(
            f"{path}: no {split} images in COCO's format; looked for {split}.json with {split}/ and for "
            f"annotations/instances_{split}*.json, a year for the star, with {split}*/"
        )
    complete = [(file, folder) for file, folder in found if folder.is_dir()]
    if not complete:
        raise DataError(f"{found[0][0]}: there is no folder {found[0][1]} with its images")
    if len(complete) > 1:
        several = ", ".join(str(file.relative_to(path)) for file, _ in complete)
        raise DataError(f"{path}: more than one set of {split} images, {several}; keep one of them in the folder")
    return CocoImages(*complete[0], transform, masks, classes)


def collate(batch: Iterable[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """A batch of images of different sizes: lists."""
    images, targets = zip(*batch, strict=True)
    return list(images), list(targets)
