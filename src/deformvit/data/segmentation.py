"""Images with a class for every pixel, from folders in ADE20K's layout."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Set
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from deformvit.data.images import IMAGE_SUFFIXES, decode, image_size, read_annotation, spread
from deformvit.data.layouts import hint
from deformvit.errors import DataError

SPLITS = {"train": ("training", "train"), "val": ("validation", "val")}
"""Names that the folder of a split may have, in order of preference."""
VALUES = 1 << 16
"""Values of a pixel in an annotation of 16 bits."""
NO_CLASS = -(1 << 31)
"""Marks values that are not a class in the look-up table of labels; any ignore_label in use is larger."""
MEASURED = 256
"""Of so many images at most the size is read to learn what is usual."""
SCANNED_SILENTLY = 500
"""So many annotations are scanned without a progress bar."""


class SegmentationImages(Dataset[Any]):
    """Images with a class label for every pixel, as :func:`open_segmentation` finds them.

    An item is ``(image, labels)``, or what ``transform`` returns for the two: a ``tv_tensors.Image`` uint8 (3, H, W) in
    RGB, and a ``tv_tensors.Mask`` (H, W) of classes from 0 or ``ignore_label``, uint8 where these fit and int64
    otherwise. Reading an item raises :class:`~deformvit.errors.DataError`, which names the file, when one of the two
    cannot be read, their sizes differ, the annotation is not one channel of 8 or 16 bits or a palette, or a label is
    not a class.

    Args:
        files: each image with its annotation.
        classes: names of the classes.
        transform: called with image and labels.
        ignore_label: label of pixels without a class, in the files too.
        reduce_zero_label: 0 in the files means no class, and the classes count from 1.

    Attributes:
        classes: names of the classes.
        ignore_label: see above.
        table: (65536,) for each value in the files its class, ``ignore_label`` or NO_CLASS.
        expected: which values are expected in the files, in words.

    Raises:
        DataError: ``ignore_label`` is the number of a class.
    """

    def __init__(
        self,
        files: list[tuple[Path, Path]],
        classes: list[str],
        transform: Callable[..., Any] | None = None,
        *,
        ignore_label: int = 255,
        reduce_zero_label: bool = False,
    ) -> None:
        if 0 <= ignore_label < len(classes) + reduce_zero_label:
            raise DataError(f"ignore_label {ignore_label} is one of the {len(classes)} classes; choose a larger one")
        self.files = files
        self.classes = classes
        self.transform = transform
        self.ignore_label = ignore_label
        first = int(reduce_zero_label)
        # Values in files -> classes: one look-up shifts labels, ignores some, and finds those that are not a class.
        self.table = np.full(VALUES, NO_CLASS, dtype=np.int64)
        self.table[:first] = ignore_label
        self.table[first : first + len(classes)] = np.arange(len(classes))
        if 0 <= ignore_label < VALUES:
            self.table[ignore_label] = ignore_label
        self.expected = f"0 to {first + len(classes) - 1}, or {ignore_label} for none"
        self._dtype = np.uint8 if len(classes) <= 255 and 0 <= ignore_label <= 255 else np.int64

    def __len__(self) -> int:
        return len(self.files)

    def image_path(self, index: int) -> Path:
        """File of an image."""
        return self.files[index][0]

    def sizes(self) -> list[tuple[int, int]]:
        """Heights and widths of some images, evenly spread over the set, from the headers of their files."""
        measured = []
        for index in spread(len(self), MEASURED):
            with contextlib.suppress(DataError):  # raised again when the image is read
                measured.append(image_size(self.image_path(index)))
        return measured

    def __getitem__(self, index: int) -> Any:
        path, annotation = self.files[index]
        image: Tensor = F.pil_to_tensor(decode(path, str(path)))
        labels = self._labels(annotation)
        if labels.shape != image.shape[1:]:
            (height, width), (rows, columns) = image.shape[1:], labels.shape
            raise DataError(f"{path} is {width} x {height}, but its annotation {annotation} {columns} x {rows}")
        item = tv_tensors.Image(image), tv_tensors.Mask(torch.from_numpy(labels))
        return self.transform(*item) if self.transform else item

    def _labels(self, path: Path) -> NDArray[np.generic]:
        raw = read_annotation(path)
        labels = self.table[raw]
        outside = labels == NO_CLASS
        if outside.any():
            value = raw[outside].min()
            raise DataError(f"{path}: label {value}, expected {self.expected} ({len(self.classes)} classes)")
        return labels.astype(self._dtype)


def open_segmentation(
    root: str,
    split: Literal["train", "val"],
    transform: Callable[..., Any] | None = None,
    *,
    ignore_label: int = 255,
    reduce_zero_label: bool = False,
    classes: list[str] | None = None,
) -> SegmentationImages:
    """The images of a split of a folder in ADE20K's layout.

    ``images/training``, ``images/validation`` and the same below ``annotations`` (or ``train`` and ``val``) hold images
    and annotations of the same names; annotations are PNG. The names of the classes are read from ``classes.json`` (a
    list), ``classes.txt`` (a name on each line) or ADE20K's own ``objectInfo150.txt``, the first of them that is there.
    A folder without names has ``classes``; if these are not given either, the classes are numbered up to the largest
    label in the annotations of both splits. That reads every annotation, so give large folders a file of names.

    Args:
        root: the folder.
        split: "train" or "val".
        transform: called with image and labels, see :class:`SegmentationImages`.
        ignore_label: label of pixels without a class.
        reduce_zero_label: 0 means no class and the classes count from 1, as in ADE20K.
        classes: names of the classes that a model knows.

    Raises:
        DataError: no such folders, with what was looked for; images without annotation or annotations without image;
            names that cannot be read or differ from ``classes``; ``ignore_label`` is the number of a class.
    """
    path = Path(root)
    if not path.is_dir():
        raise DataError(f"data.root {root!r}: no such folder")
    files = _files(path, split)
    names, source = _names(path)
    if names and classes and names != classes:
        raise DataError(f"{source}: {_difference(names, classes)}")
    names = names or classes or _numbers(path, ignore_label, reduce_zero_label)
    return SegmentationImages(files, names, transform, ignore_label=ignore_label, reduce_zero_label=reduce_zero_label)


def _folder(root: Path, kind: str, split: str) -> Path:
    """``images`` or ``annotations`` of a split."""
    candidates = [root / kind / name for name in SPLITS[split]]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise DataError(
        f"{root}: no {kind} of the {split} split; looked for {' and '.join(map(str, candidates))}{hint(root, 'ade20k')}"
    )


def _by_stem(folder: Path, suffixes: Set[str]) -> dict[str, Path]:
    """Files with one of the suffixes, in the order of their names."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            if path.stem in found:
                raise DataError(f"{path}: of the same name as {found[path.stem].name}")
            found[path.stem] = path
    return found


def _files(root: Path, split: str) -> list[tuple[Path, Path]]:
    """Images and annotations of the same names."""
    image_folder, annotation_folder = _folder(root, "images", split), _folder(root, "annotations", split)
    images, annotations = _by_stem(image_folder, IMAGE_SUFFIXES), _by_stem(annotation_folder, {".png"})
    if not images and not annotations:
        raise DataError(f"{image_folder}: the {split} split is empty")
    for files, others, kind, lacking in (
        (images, annotations, "images", f"no annotation in {annotation_folder}"),
        (annotations, images, "annotations", f"no image in {image_folder}"),
    ):
        unmatched = [file for stem, file in files.items() if stem not in others]
        if unmatched:
            raise DataError(f"{unmatched[0]}: {lacking}; {len(unmatched)} of {len(files)} {kind} have none")
    return [(path, annotations[stem]) for stem, path in images.items()]


def _names(root: Path) -> tuple[list[str], Path]:
    """Names of the classes and the file they are read from; no names where there is no such file."""
    readers = (("classes.json", _json_names), ("classes.txt", _text_names), ("objectInfo150.txt", _ade20k_names))
    for file, read in readers:
        path = root / file
        if path.exists():
            names = read(path)
            repeated = next((name for i, name in enumerate(names) if name in names[:i]), None)
            if repeated is not None:
                raise DataError(f"{path}: two classes are called {repeated!r}")
            return names, path
    return [], root


def _json_names(path: Path) -> list[str]:
    """A list of names."""
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{path}: expected a list of names")
    return names


def _text_names(path: Path) -> list[str]:
    """A name on each line."""
    names = [line.strip() for line in _lines(path)]
    while names and not names[-1]:
        names.pop()
    if not names or "" in names:
        raise DataError(f"{path}: expected a name on each line, but line {[*names, ''].index('') + 1} is empty")
    return names


def _ade20k_names(path: Path) -> list[str]:
    """Last column of a tab-separated table with a header; the first column counts from 1."""
    names: list[str] = []
    for line in filter(str.strip, _lines(path)[1:]):
        number, *rest = (cell.strip() for cell in line.split("\t"))
        if number != str(len(names) + 1) or not rest or not rest[-1]:
            raise DataError(f"{path}: expected class {len(names) + 1} and its name in columns, found {line!r}")
        names.append(rest[-1])
    if not names:
        raise DataError(f"{path}: no classes below the header")
    return names


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as text ({error})") from error


def _numbers(root: Path, ignore_label: int, reduce_zero_label: bool) -> list[str]:
    """Numbers up to the largest label in the annotations of all splits, as names; reads every annotation."""
    folders = [root / "annotations" / name for names in SPLITS.values() for name in names]
    files = [file for folder in folders if folder.is_dir() for file in _by_stem(folder, {".png"}).values()]
    silent = len(files) <= SCANNED_SILENTLY
    progress: Iterable[Path] = tqdm(files, desc="count classes", unit="file", leave=False, disable=silent)
    largest, ignored = -1, False
    for file in progress:
        labels = read_annotation(file)
        counted = labels[labels != ignore_label]
        ignored = ignored or counted.size < labels.size
        largest = max(largest, int(counted.max()) if counted.size else -1)
    count = largest + 1 - reduce_zero_label
    if count == 1 and ignore_label == 255 and ignored:
        raise DataError(
            f"{root / 'annotations'}: all labels are 0 or 255, and 255 means no class, which leaves one class; write "
            f"the second one as 1"
        )
    if count < 1:
        raise DataError(f"{root / 'annotations'}: no pixel has a class")
    return [str(i) for i in range(count)]


def _difference(found: list[str], known: list[str]) -> str:
    """How the classes of a folder differ from those that a model knows."""
    parts = [f"{len(found)} classes, but the model knows {len(known)}"] if len(found) != len(known) else []
    for text, names, others in (("the model does not know", found, known), ("missing are", known, found)):
        unmatched = [name for name in names if name not in others]
        if unmatched:
            more = f" and {len(unmatched) - 5} more" if len(unmatched) > 5 else ""
            parts.append(f"{text} {', '.join(unmatched[:5])}{more}")
    if not parts:
        i = next(i for i in range(len(found)) if found[i] != known[i])
        parts.append(f"another order of classes: number {i} is {found[i]!r}, for the model {known[i]!r}")
    return "; ".join(parts)
