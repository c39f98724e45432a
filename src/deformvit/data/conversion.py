"""Data sets in YOLO's and Pascal VOC's layouts, written in COCO's format: ``deformvit data convert``.

supervision reads the annotations, one image at a time; images are not decoded but for their size, and are linked or
copied as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tqdm import tqdm

from deformvit.data.images import IMAGE_SUFFIXES, image_size
from deformvit.data.layouts import hint, recognise, voc_folders, yolo_splits
from deformvit.errors import DataError
from deformvit.storage import write_atomically

HELD_OUT = 10
"""Of so many images about one is for validation where the layout has no such split."""
MOST_PIXELS = 1 << 31
"""Of the masks of an image together."""
MOST_BYTES = 10 << 20
"""Of an annotation or data.yaml."""


@dataclass
class Converted:
    """What was written, and what was left out."""

    images: dict[str, int] = field(default_factory=dict)
    objects: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    """Images and annotations that cannot be read, each with its reason."""
    held_out: bool = False
    """The validation images are some of the training images, as the layout has none."""


@dataclass
class _Pair:
    """An image and its annotation, which may be missing: then it has no objects."""

    image: Path
    annotation: Path


def convert(root: Path, out: Path, progress: bool = False) -> Converted:
    """Write a data set in COCO's format, as training takes it: train.json, train/, val.json, val/.

    Args:
        root: a folder in YOLO's layout (images/ and labels/ of each split, names in data.yaml) or Pascal VOC's
            (JPEGImages/, Annotations/, ImageSets/Main/train.txt and val.txt).
        out: a folder, which must not exist or be empty.
        progress: draw a progress bar.

    Raises:
        DataError: another layout, no names of classes, or ``out`` holds something.
    """
    layout = recognise(root)
    if layout not in ("yolo", "voc"):
        raise DataError(f"{root}: expected YOLO's or Pascal VOC's layout{hint(root, 'classification')}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: there is something already; name an empty or a new folder")
    splits = _yolo_pairs(root) if layout == "yolo" else _voc_pairs(root)
    if not splits.get("train"):
        raise DataError(f"{root}: no training images")
    done = Converted(held_out=not splits.get("val"))
    if done.held_out:
        splits = _hold_out(splits["train"])
    classes = _yolo_names(root) if layout == "yolo" else []
    contents = {}
    for split, pairs in splits.items():
        shown = tqdm(pairs, desc=split, unit="image", leave=False, disable=not progress)
        contents[split] = _content(_read(shown, layout, classes, done), out / split)
        done.images[split], done.objects[split] = (len(contents[split][name]) for name in ("images", "annotations"))
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, 1)]
    for split, content in contents.items():
        _write(out / f"{split}.json", content | {"categories": categories})
    return done


def _write(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, lambda file: file.write_text(json.dumps(content)))


def _read(
    pairs: Iterable[_Pair], layout: str, classes: list[str], done: Converted
) -> Iterator[tuple[Path, tuple[int, int], list[dict[str, Any]]]]:
    """Image, (H, W) and COCO's annotations of each pair that can be read; VOC's classes are found on the way."""
    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import ParseError, fromstring
    from supervision.dataset.formats.pascal_voc import detections_from_xml_obj
    from supervision.dataset.formats.yolo import yolo_annotations_to_detections

    for pair in pairs:
        try:
            height, width = image_size(pair.image)
            text = _text(pair.annotation) if pair.annotation.exists() else ""
            if not text.strip():
                entries = []
            elif layout == "yolo":
                lines = [line for line in text.splitlines() if line.strip()]
                polygons = any(len(line.split()) > 6 for line in lines)
                _check_memory(len(lines) * polygons, height, width)
                found = yolo_annotations_to_detections(lines, (width, height), with_masks=polygons)
                entries = _entries(found, len(classes))
            else:
                _check_memory(text.count("<object") * ("<polygon" in text), height, width)
                found, known = detections_from_xml_obj(fromstring(text), classes, (width, height))
                entries, classes[:] = _entries(found, len(known)), known
        except DataError as error:
            done.left_out.append(str(error))
        except (ValueError, ParseError, DefusedXmlException, RecursionError, OverflowError) as error:
            done.left_out.append(f"{pair.annotation}: {' '.join(str(error).split())[:200]}")
        else:
            yield pair.image, (height, width), entries


def _check_memory(masks: int, height: int, width: int) -> None:
    """supervision draws all masks of an image at once."""
    if masks * height * width > MOST_PIXELS:
        raise ValueError(f"{masks} masks of {width} x {height} pixels are too many")


def _entries(found: Any, classes: int) -> list[dict[str, Any]]:
    """supervision's detections of an image as COCO's annotations; masks as run lengths.

    Raises:
        ValueError: an object of an unknown class.
    """
    entries: list[dict[str, Any]] = []
    for number, (box, label) in enumerate(zip(found.xyxy.tolist(), found.class_id.tolist(), strict=True)):
        if not 0 <= label < classes:
            raise ValueError(f"class {label}, expected 0 to {classes - 1}")
        left, top, right, bottom = (round(value, 3) for value in box)
        sides = [right - left, bottom - top]
        entry = {"category_id": label + 1, "bbox": [left, top, *sides], "area": sides[0] * sides[1], "iscrowd": 0}
        if found.mask is not None:
            from faster_coco_eval.core import mask

            encoded = mask.encode(np.asfortranarray(found.mask[number].astype(np.uint8)))
            entry["segmentation"] = {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}
            entry["area"] = int(found.mask[number].sum())
        entries.append(entry)
    return entries


def _content(
    read: Iterable[tuple[Path, tuple[int, int], list[dict[str, Any]]]], folder: Path
) -> dict[str, list[dict[str, Any]]]:
    """COCO's lists of a split; its images are linked or copied into ``folder``."""
    folder.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    used: set[str] = set()
    for number, (path, (height, width), entries) in enumerate(read, 1):
        name = path.name
        while name.lower() in used:
            name = f"_{name}"
        used.add(name.lower())
        try:
            os.link(path.resolve(), folder / name)
        except OSError:  # another disk
            shutil.copyfile(path, folder / name)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for entry in entries:
            annotations.append({"id": len(annotations) + 1, "image_id": number, **entry})
    return {"images": images, "annotations": annotations}


def _yolo_pairs(root: Path) -> dict[str, list[_Pair]]:
    return {
        split: [_Pair(path, labels / f"{path.stem}.txt") for path in _images(images)]
        for split, (images, labels) in yolo_splits(root).items()
    }


def _voc_pairs(root: Path) -> dict[str, list[_Pair]]:
    """Images of the split that ImageSets/Main says; those that it does not name are for training."""
    splits: dict[str, list[_Pair]] = {"train": [], "val": []}
    for folder in voc_folders(root):
        lists = folder / "ImageSets" / "Main"
        named = _text(lists / "val.txt").split() if (lists / "val.txt").is_file() else []
        validation = set(named)
        for path in _images(folder / "JPEGImages"):
            pair = _Pair(path, folder / "Annotations" / f"{path.stem}.xml")
            if pair.annotation.exists():  # the rest of VOC's images are for classification
                splits["val" if path.stem in validation else "train"].append(pair)
    return splits


def _hold_out(pairs: list[_Pair]) -> dict[str, list[_Pair]]:
    """A tenth of the images for validation, chosen by a hash of their names; at least one of two."""
    ranked = sorted(pairs, key=lambda pair: hashlib.sha256(pair.image.name.encode(errors="surrogateescape")).digest())
    count = max(len(pairs) // HELD_OUT, 1)
    held = {pair.image for pair in ranked[:count]}
    return {
        "train": [pair for pair in pairs if pair.image not in held],
        "val": [pair for pair in pairs if pair.image in held],
    }


def _images(folder: Path) -> list[Path]:
    found = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in found if not path.name.startswith("."))


def _yolo_names(root: Path) -> list[str]:
    """Names of the classes in data.yaml (or another YAML file of the folder), or in classes.txt."""
    for path in [*sorted(root.glob("data.y*ml")), *sorted(root.glob("*.y*ml"))]:
        try:
            content = yaml.safe_load(_text(path))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise DataError(f"{path}: not readable as YAML ({' '.join(str(error).split())[:200]})") from error
        names = content.get("names") if isinstance(content, dict) else None
        if isinstance(names, dict) and all(type(key) is int for key in names):
            names = [names[key] for key in sorted(names)] if sorted(names) == list(range(len(names))) else None
        if not isinstance(names, list) or not names or not all(isinstance(name, str | int | float) for name in names):
            raise DataError(f"{path}: expected `names`, a list of the classes or their names by number from 0")
        return [str(name) for name in names]
    for path in (root / "classes.txt", root / "labels" / "classes.txt"):
        if path.is_file():
            return [line.strip() for line in _text(path).splitlines() if line.strip()]
    raise DataError(f"{root}: no data.yaml with the names of the classes, and no classes.txt")


def _text(path: Path) -> str:
    """A small regular file.

    Raises:
        DataError: it cannot be read, or is larger than any annotation.
    """
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path}: not a regular file of at most {MOST_BYTES >> 20} MiB")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as text ({error})") from error
