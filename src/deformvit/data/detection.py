"""Images with boxes and masks in COCO's format, checked when they are opened."""

from __future__ import annotations

import contextlib
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
from deformvit.data.images import decode, image_size, spread
from deformvit.data.layouts import hint
from deformvit.errors import DataError

Target = dict[str, Tensor]
MEASURED = 256
"""Of so many images at most, whose size the JSON does not say, the file's header is read to learn the usual size."""
Transform = Callable[[tv_tensors.Image, Target], tuple[Tensor, Target]]


class _Objects(NamedTuple):
    """The objects of an image, unclipped; in arrays, which forked loader processes share instead of copying."""

    boxes: array[float]
    """x, y, width, height of each object."""
    labels: array[int]
    masks: list[Segmentation]
    """One for each label; empty if masks are not read."""


class CocoImages(Dataset[Any]):
    """Images with boxes, labels and optionally masks; :func:`open_coco` finds the files of a data set.

    An item is an image and its target, or what ``transform`` returns for the two:

    - the image, uint8 (3, H, W);
    - ``boxes`` float32 (N, 4), x1, y1, x2, y2 in pixels, clipped to the image;
    - ``labels`` int64 (N,), indices of ``classes``;
    - ``masks`` uint8 (N, H, W), 0 or 1, if masks are read;
    - ``image_id`` int64 ().

    Crowd annotations are left out: they matter in evaluation only, which reads the file itself. Images without objects
    stay. Annotations that cannot be used are left out; ``problems`` names and counts them.

    Args:
        ground_truth: the JSON file.
        folder: folder of the images, to which ``file_name`` in the JSON is relative.
        transform: called with the image and its target.
        masks: whether to read masks.
        classes: names in the order of their labels, for a model that knows them; by default the categories of the file
            in order of their ids.

    Raises:
        DataError: a damaged file, missing images, categories that are not in ``classes``, or no masks to read.
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
        """What did not fit when images were read: counts by kind. Each loader process has its own."""
        self._left_out: dict[str, list[Any]] = {}
        content = read_coco(ground_truth)
        self.classes: list[str]
        """Names of the labels."""
        self.category_ids: list[int]
        """Category id of every label; classes that the file lacks have ids above those of the file."""
        self.classes, self.category_ids = _labels(ground_truth, content["categories"], classes)
        self.image_ids: list[int] = []
        """Id of every image."""
        self._names: list[str] = []
        self._sizes: list[tuple[int, int] | None] = []
        self._repeated_images = self._read_images(content["images"])
        self._check_files()
        self._objects = [_Objects(array("d"), array("q"), []) for _ in self.image_ids]
        self._read_annotations(content["annotations"])

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Any:
        path = self.image_path(index)
        decoded = decode(path, str(path))
        height, width = decoded.height, decoded.width
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
            drawn = [(i, self._mask(objects.masks[i], height, width)) for i in kept]
            masks = {i: mask for i, mask in drawn if mask is not None}
            self._drop("objects without a usable mask", len(kept) - len(masks))
            kept = list(masks)
            stacked = np.stack([*masks.values()]) if masks else np.zeros((0, height, width), np.uint8)
            target["masks"] = tv_tensors.Mask(torch.from_numpy(stacked))
        target["boxes"] = tv_tensors.BoundingBoxes(boxes[kept], format="XYXY", canvas_size=(height, width))
        target["labels"] = torch.tensor(objects.labels, dtype=torch.int64)[kept]
        target["image_id"] = torch.tensor(self.image_ids[index], dtype=torch.int64)
        image = functional.to_image(decoded)
        return self.transform(image, target) if self.transform else (image, target)

    @property
    def problems(self) -> list[str]:
        """What was left out when the file was opened, a line for each reason."""
        name = self.ground_truth.name
        repeated = self._repeated_images
        lines = [f"{name}: {repeated} image{'s are' if repeated > 1 else ' is'} listed again"] if repeated else []
        for reason, ids in self._left_out.items():
            several = len(ids) > 1
            first = ", ".join(map(str, ids[:3])) + (", ..." if len(ids) > 3 else "")
            lines.append(
                f"{name}: {len(ids)} annotation{'s' * several} {reason} {'were' if several else 'was'} left out "
                f"(annotation id{'s' * several} {first})"
            )
        return lines

    @property
    def warnings(self) -> list[str]:
        """:attr:`problems`, and what else is probably not meant: a line for each with its count."""
        name, count = self.ground_truth.name, len(self)
        empty = [i for i, objects in enumerate(self._objects) if not objects.labels]
        if len(empty) == count:
            return [*self.problems, f"{name}: none of its {count} images has an object; nothing can be learnt from it"]
        lines = self.problems
        if empty:
            are = "have no object and are" if len(empty) > 1 else "has no object and is"
            lines.append(f"{name}: {len(empty)} of {count} images {are} background only ({self._names[empty[0]]})")
        used = {label for objects in self._objects for label in set(objects.labels)}
        unused = [self.classes[label] for label in range(len(self.classes)) if label not in used]
        if unused:
            some = ", ".join(unused[:5]) + (", ..." if len(unused) > 5 else "")
            lines.append(f"{name}: {len(unused)} of {len(self.classes)} classes occur in no annotation: {some}")
        return lines

    def label_counts(self) -> list[int]:
        """Objects of each class."""
        found = Counter(itertools.chain.from_iterable(objects.labels for objects in self._objects))
        return [found[label] for label in range(len(self.classes))]

    def image_path(self, index: int) -> Path:
        """File of an image."""
        return self.folder / self._names[index]

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image in pixels, from its file, which is not decoded.

        Raises:
            DataError: the file cannot be read as an image.
        """
        return image_size(self.image_path(index))

    def sizes(self) -> list[tuple[int, int]]:
        """Heights and widths as the JSON says; where it does not, of some images, from the headers of their files."""
        known = [size for size in self._sizes if size is not None]
        if known:
            return known
        measured = []
        for index in spread(len(self), MEASURED):
            with contextlib.suppress(DataError):  # raised again when the image is read
                measured.append(self.size(index))
        return measured

    def sides(self) -> list[float]:
        """Of every object, the square root of the area of its box, in pixels."""
        boxes = (objects.boxes for objects in self._objects)
        return [(values[i] * values[i + 1]) ** 0.5 for values in boxes for i in range(2, len(values), 4)]

    def _drop(self, kind: str, count: int) -> None:
        if count:
            self.dropped[kind] += count

    def _mask(self, segmentation: Segmentation, height: int, width: int) -> np.ndarray[Any, Any] | None:
        """uint8 (H, W), or None if no pixel of the image belongs to the object."""
        from faster_coco_eval.core import mask

        try:
            pixels = mask.decode(run_lengths(segmentation, height, width))
        except ValueError:  # of another size; malformed masks are left out when the file is opened
            return None
        return pixels if pixels.any() else None

    def _read_images(self, images: list[Any]) -> int:
        """Fills the lists of images; returns how many entries repeat an earlier one."""
        names: dict[int, str] = {}
        for entry in images:
            image_id, name = (entry.get("id"), entry.get("file_name")) if isinstance(entry, dict) else (None, None)
            if type(image_id) is not int or not isinstance(name, str) or not name:
                raise DataError(f"{self.ground_truth}: images need an integer id and a file_name, found {entry!r}")
            if names.setdefault(image_id, name) != name:
                raise DataError(f"{self.ground_truth}: image id {image_id} belongs to {names[image_id]} and to {name}")
            if len(names) > len(self.image_ids):
                size = (entry.get("height"), entry.get("width"))
                self.image_ids.append(image_id)
                self._names.append(name)
                self._sizes.append(size if all(type(side) is int and side > 0 for side in size) else None)
        return len(images) - len(names)

    def _check_files(self) -> None:
        """All images must exist. Folders are listed once, as a look-up of every file is slow on network disks."""
        listed: dict[str, set[str]] = {}
        missing = []
        for name in self._names:
            inner, _, file = name.rpartition("/")
            if inner not in listed:
                parent = self.folder / inner
                listed[inner] = {entry.name for entry in os.scandir(parent)} if parent.is_dir() else set()
            if file not in listed[inner]:
                missing.append(name)
        if missing:
            raise DataError(
                f"{self.folder / missing[0]}: no such image; {len(missing)} of {len(self._names)} images of "
                f"{self.ground_truth} are missing"
            )

    def _read_annotations(self, annotations: list[Any]) -> None:
        """Fills the objects of the images and empties ``annotations``, as COCO's take gigabytes."""
        if self.masks:
            import faster_coco_eval.core.mask  # noqa: F401  # fails here rather than in training if it is missing
        indices = {image_id: index for index, image_id in enumerate(self.image_ids)}
        labels = {category_id: label for label, category_id in enumerate(self.category_ids)}
        ids: set[Any] = set()
        annotations.reverse()
        while annotations:
            annotation = annotations.pop()
            if not isinstance(annotation, dict):
                raise DataError(f"{self.ground_truth}: annotations must be JSON objects, found {annotation!r}")
            try:
                self._read_annotation(annotation, indices, labels, ids)
            except Unusable as reason:
                self._left_out.setdefault(str(reason), []).append(annotation.get("id", "none"))
        without_mask = self._left_out.get(NO_MASK, [])
        if without_mask and not any(objects.labels for objects in self._objects):
            raise self._boxes_only(without_mask[0])

    def _read_annotation(
        self, annotation: dict[str, Any], indices: dict[int, int], labels: dict[int, int], ids: set[Any]
    ) -> None:
        """Adds an annotation to the objects of its image; ``ids`` are those of earlier annotations.

        Raises:
            Unusable: it is to be left out.
        """
        annotation_id, image_id, category_id = (annotation.get(name) for name in ("id", "image_id", "category_id"))
        if type(image_id) is not int or image_id not in indices:
            raise Unusable("of an unknown image")
        if type(category_id) is not int or category_id not in labels:
            raise Unusable("of an unknown category")
        if isinstance(annotation_id, int | str):
            if annotation_id in ids:
                raise Unusable("with the id of an earlier one")
            ids.add(annotation_id)
        if annotation.get("iscrowd"):
            return
        index = indices[image_id]
        box = read_box(annotation.get("bbox"))
        if box[2] <= 0 or box[3] <= 0:
            raise Unusable("with a box without area")
        left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
        if right <= 0 or bottom <= 0 or not self._size_passes(index, lambda h, w: left < w and top < h):
            raise Unusable("with a box outside the image")
        if self.masks:
            if annotation.get("segmentation") is None:
                raise self._boxes_only(annotation_id)
            segmentation = read_segmentation(annotation["segmentation"])
            if isinstance(segmentation, dict):
                size = tuple(segmentation["size"])
                if not self._size_passes(index, lambda h, w: size == (h, w)):
                    raise Unusable("with a mask of another size than the image")
            self._objects[index].masks.append(segmentation)
        self._objects[index].boxes.extend(box)
        self._objects[index].labels.append(labels[category_id])

    def _size_passes(self, index: int, test: Callable[[int, int], bool]) -> bool:
        """Whether height and width of an image pass a test; if the JSON's do not, those of the file decide."""
        size = self._sizes[index]
        if size is not None and test(*size):
            return True
        try:
            return test(*self.size(index))
        except DataError:
            return True  # raised again when the image is read

    def _boxes_only(self, annotation_id: Any) -> DataError:
        return DataError(
            f"{self.ground_truth}: annotation {annotation_id} has a box but no segmentation; systems that predict "
            f"masks need one for every object, train retinanet on boxes alone"
        )


def _labels(path: Path, categories: list[Any], classes: list[str] | None) -> tuple[list[str], list[int]]:
    """Names and category ids in the order of the labels."""
    names: dict[int, str] = {}
    for entry in categories:
        category_id, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if type(category_id) is not int or not isinstance(name, str):
            raise DataError(f"{path}: categories need an integer id and a name, found {entry!r}")
        if category_id in names or name in names.values():
            raise DataError(f"{path}: two categories have the id {category_id} or the name {name}")
        names[category_id] = name
    if classes is None:
        return [names[category_id] for category_id in sorted(names)], sorted(names)
    unknown = [name for name in names.values() if name not in classes]
    if unknown:
        raise DataError(
            f"{path}: categories {', '.join(unknown)} are unknown to the model, which knows {', '.join(classes)}"
        )
    ids = {name: category_id for category_id, name in names.items()}
    unused = itertools.count(max(names) + 1)
    return list(classes), [ids[name] if name in ids else next(unused) for name in classes]


def open_coco(
    root: str, split: str, transform: Transform | None = None, masks: bool = True, classes: list[str] | None = None
) -> CocoImages:
    """The images of a split ("train" or "val").

    Args:
        root: a folder with ``train.json`` and ``train/``, or, as COCO is distributed, with
            ``annotations/instances_train2017.json`` and ``train2017/`` of any year or none.
        split: "train" or "val".
        transform: called with an image and its target, see :class:`CocoImages`.
        masks: whether to read masks.
        classes: names in the order of their labels, for a model that knows them.

    Raises:
        DataError: no such files, with what was looked for; or as :class:`CocoImages`.
    """
    path = Path(root)
    if not path.is_dir():
        raise DataError(f"data.root {root!r}: no such folder")
    candidates = [(path / f"{split}.json", path / split)]
    for file in sorted((path / "annotations").glob(f"instances_{split}*.json")):
        part = file.stem.removeprefix("instances_")
        if re.fullmatch(rf"{split}\d*", part):  # not COCO's valminusminival2014
            candidates.append((file, path / part))
    annotated = [(file, folder) for file, folder in candidates if file.is_file()]
    if not annotated:
        raise DataError(
            f"{path}: no {split} images in COCO's format; looked for {split}.json with {split}/ and for "
            f"annotations/instances_{split}*.json with {split}*/, where * is a year or nothing{hint(path, 'coco')}"
        )
    complete = [(file, folder) for file, folder in annotated if folder.is_dir()]
    if not complete:
        raise DataError(f"{annotated[0][0]}: there is no folder {annotated[0][1]} with its images")
    if len(complete) > 1:
        several = ", ".join(str(file.relative_to(path)) for file, _ in complete)
        raise DataError(f"{path}: more than one set of {split} images, {several}; keep one of them in the folder")
    return CocoImages(*complete[0], transform, masks, classes)


def collate(batch: Iterable[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """A batch as lists of images, which may differ in size, and of their targets."""
    images, targets = zip(*batch, strict=True)
    return list(images), list(targets)
