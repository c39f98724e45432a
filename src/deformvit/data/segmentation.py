"""Images with a class for every pixel, from folders in ADE20K's layout."""

from __future__ import annotations

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

from deformvit.data.images import IMAGE_SUFFIXES, decode, read_annotation
from deformvit.errors import DataError

SPLITS = {"train": ("training", "train"), "val": ("validation", "val")}
"""Names that the folder of a split may have, in order of preference."""
VALUES = 1 << 16
"""Numbers that an annotation of 16 bits can hold."""
OUTSIDE = -(1 << 31)
"""Where the table of labels has no class; no ignore_label in use is as small."""
QUIET = 500
"""Annotations that are scanned without a progress bar."""


class SceneImages(Dataset[Any]):
    """Images and their labels, one for every pixel; made by :func:`open_scenes`.

    An item is ``(image, labels)``, uint8 ``tv_tensors.Image`` (3, H, W) in RGB and ``tv_tensors.Mask`` (H, W) with
    classes from 0 or ``ignore_label``, uint8 where these fit and int64 otherwise; or what ``transform`` makes of the
    two. Reading an item raises :class:`DataError`, which names the file, when one of the two cannot be read, their
    sizes differ, the annotation is not one channel of 8 or 16 bits or a palette, or a label is no class.

    Args:
        pairs: files of the images and their annotations.
        classes: names of the classes.
        transform: called with image and labels.
        ignore_label: what pixels without a class have, in the files too.
        reduce_zero_label: 0 in the files means no class, and the classes count from 1.

    Attributes:
        classes: names of the classes.
        ignore_label: see above.

    Raises:
        DataError: ``ignore_label`` is the number of a class.
    """

    def __init__(
        self,
        pairs: list[tuple[Path, Path]],
        classes: list[str],
        transform: Callable[..., Any] | None = None,
        *,
        ignore_label: int = 255,
        reduce_zero_label: bool = False,
    ) -> None:
        if 0 <= ignore_label < len(classes) + reduce_zero_label:
            raise DataError(f"ignore_label {ignore_label} is one of the {len(classes)} classes; choose a larger one")
        self.pairs = pairs
        self.classes = classes
        self.transform = transform
        self.ignore_label = ignore_label
        first = int(reduce_zero_label)
        # Labels of files -> classes, so that one look-up shifts, ignores and finds what is no class.
        self._table = np.full(VALUES, OUTSIDE, dtype=np.int64)
        self._table[:first] = ignore_label
        self._table[first : first + len(classes)] = np.arange(len(classes))
        if 0 <= ignore_label < VALUES:
            self._table[ignore_label] = ignore_label
        self._expected = f"0 to {first + len(classes) - 1}, or {ignore_label} for none"
        self._dtype = np.uint8 if len(classes) <= 255 and 0 <= ignore_label <= 255 else np.int64

    def __len__(self) -> int:
        return len(self.pairs)

    def image_path(self, index: int) -> Path:
        """File of an image."""
        return self.pairs[index][0]

    def __getitem__(self, index: int) -> Any:
        path, annotation = self.pairs[index]
        image: Tensor = F.pil_to_tensor(decode(path, str(path)))
        labels = self._labels(annotation)
        if labels.shape != image.shape[1:]:
            (height, width), (rows, columns) = image.shape[1:], labels.shape
            raise DataError(f"{path} is {width} x {height}, but its annotation {annotation} {columns} x {rows}")
        item = tv_tensors.Image(image), tv_tensors.Mask(torch.from_numpy(labels))
        return self.transform(*item) if self.transform else item

    def _labels(self, path: Path) -> NDArray[np.generic]:
        raw = read_annotation(path)
        labels = self._table[raw]
        outside = labels == OUTSIDE
        if outside.any():
            value = raw[outside].min()
            raise DataError(f"{path}: label {value}, expected {self._expected} ({len(self.classes)} classes)")
        return labels.astype(self._dtype)


def open_scenes(
    root: str,
    split: Literal["train", "val"],
    transform: Callable[..., Any] | None = None,
    *,
    ignore_label: int = 255,
    reduce_zero_label: bool = False,
    classes: list[str] | None = None,
) -> SceneImages:
    """The images of a split of a folder in ADE20K's layout.

    ``images/training``, ``images/validation`` and the same below ``annotations`` (or ``train`` and ``val``) hold images
    and annotations of the same names; annotations are PNG. The names of the classes are read from ``classes.json``, a
    list, or ADE20K's own ``objectInfo150.txt``. A folder without either has ``classes``; if these are not given, it
    has as many as the largest label in the annotations of both splits says, and their numbers as names. That reads
    every annotation, so give large folders a ``classes.json``.

    Args:
        root: the folder.
        split: "train" or "val".
        transform: called with image and labels, see :class:`SceneImages`.
        ignore_label: what pixels without a class have.
        reduce_zero_label: 0 means no class and the classes count from 1, as in ADE20K.
        classes: names of the classes that a model knows.

    Raises:
        DataError: nothing there, with what was looked for; images without annotation or annotations without image;
            names that cannot be read, or others than ``classes``; an ignored label that is a class too.
    """
    path = Path(root)
    if not path.is_dir():
        raise DataError(f"data.root {root!r}: no such folder")
    pairs = _pairs(path, split)
    names, source = _names(path)
    if names and classes and names != classes:
        raise DataError(f"{source}: {_difference(names, classes)}")
    names = names or classes or _numbers(path, ignore_label, reduce_zero_label)
    return SceneImages(pairs, names, transform, ignore_label=ignore_label, reduce_zero_label=reduce_zero_label)


def _folder(root: Path, kind: str, split: str) -> Path:
    """``images`` or ``annotations`` of a split."""
    candidates = [root / kind / name for name in SPLITS[split]]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise DataError(f"{root}: no {kind} of the {split} split; looked for {' and '.join(map(str, candidates))}")


def _by_stem(folder: Path, suffixes: Set[str]) -> dict[str, Path]:
    """Files with one of the suffixes, in the order of their names."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            if path.stem in found:
                raise DataError(f"{path}: of the same name as {found[path.stem].name}")
            found[path.stem] = path
    return found


def _pairs(root: Path, split: str) -> list[tuple[Path, Path]]:
    """Images and annotations of the same names."""
    folders = _folder(root, "images", split), _folder(root, "annotations", split)
    images, annotations = _by_stem(folders[0], IMAGE_SUFFIXES), _by_stem(folders[1], {".png"})
    if not images and not annotations:
        raise DataError(f"{folders[0]}: the {split} split is empty")
    for these, those, what, missing in (
        (images, annotations, "images", f"no annotation in {folders[1]}"),
        (annotations, images, "annotations", f"no image in {folders[0]}"),
    ):
        alone = [these[stem] for stem in these if stem not in those]
        if alone:
            raise DataError(f"{alone[0]}: {missing}; {len(alone)} of {len(these)} {what} have none")
    return [(path, annotations[stem]) for stem, path in images.items()]


def _names(root: Path) -> tuple[list[str], Path]:
    """Names of the classes and the file that has them; none where there is no such file."""
    path = root / "classes.json"
    if path.exists():
        try:
            names = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not readable as JSON ({error})") from error
        if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
            raise DataError(f"{path}: expected a list of names")
    else:
        path = root / "objectInfo150.txt"
        names = _ade20k_names(path) if path.exists() else []
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise DataError(f"{path}: two classes are called {twice!r}")
    return names, path


def _ade20k_names(path: Path) -> list[str]:
    """Last column of a tab-separated table with a header; the first column counts from 1."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as text ({error})") from error
    names: list[str] = []
    for line in filter(str.strip, lines[1:]):
        number, *rest = (cell.strip() for cell in line.split("\t"))
        if number != str(len(names) + 1) or not rest or not rest[-1]:
            raise DataError(f"{path}: expected class {len(names) + 1} and its name in columns, found {line!r}")
        names.append(rest[-1])
    if not names:
        raise DataError(f"{path}: no classes below the header")
    return names


def _numbers(root: Path, ignore_label: int, reduce_zero_label: bool) -> list[str]:
    """Numbers of the classes that the annotations of all splits have, found by reading them."""
    folders = [root / "annotations" / name for names in SPLITS.values() for name in names]
    files = [file for folder in folders if folder.is_dir() for file in _by_stem(folder, {".png"}).values()]
    shown: Iterable[Path] = tqdm(files, desc="count classes", unit="file", leave=False, disable=len(files) <= QUIET)
    largest = -1
    for file in shown:
        labels = read_annotation(file)
        counted = labels[labels != ignore_label]
        largest = max(largest, int(counted.max()) if counted.size else -1)
    count = largest + 1 - reduce_zero_label
    if count < 1:
        raise DataError(f"{root / 'annotations'}: no pixel has a class")
    return [str(i) for i in range(count)]


def _difference(found: list[str], known: list[str]) -> str:
    """What distinguishes the classes of a folder from those that a model knows."""
    parts = [f"{len(found)} classes, but the model knows {len(known)}"] if len(found) != len(known) else []
    for text, these, those in (("the model does not know", found, known), ("missing are", known, found)):
        alone = [name for name in these if name not in those]
        if alone:
            more = f" and {len(alone) - 5} more" if len(alone) > 5 else ""
            parts.append(f"{text} {', '.join(alone[:5])}{more}")
    if not parts:
        i = next(i for i in range(len(found)) if found[i] != known[i])
        parts.append(f"another order of classes: number {i} is {found[i]!r}, for the model {known[i]!r}")
    return "; ".join(parts)
