"""Which layout a folder of images has: ours, or another that can be converted."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Literal

Layout = Literal["classification", "coco", "ade20k", "yolo", "voc"]
NAMES: dict[Layout, str] = {
    "classification": "images with a class each",
    "coco": "boxes or masks in COCO's format",
    "ade20k": "a class for every pixel, in ADE20K's layout",
    "yolo": "YOLO's layout (images/ and labels/ with a .txt for each image)",
    "voc": "Pascal VOC's layout (JPEGImages/ and Annotations/ with an .xml for each image)",
}
LISTED = 1000
"""So many entries of a folder are looked at to recognise its layout."""


def recognise(root: Path) -> Layout:
    """The layout of a data set; "classification" where it is no other's.

    Only names are looked at, no file is opened.
    """
    if not root.is_dir():
        return "classification"
    if voc_folders(root):
        return "voc"
    if any((root / f"{split}.json").is_file() for split in ("train", "val")) or _first(root / "annotations", "*.json"):
        return "coco"
    if yolo_splits(root):
        return "yolo"
    if (root / "images").is_dir() and (root / "annotations").is_dir():
        return "ade20k"
    return "classification"


def voc_folders(root: Path) -> list[Path]:
    """Folders with Annotations/ and JPEGImages/: the root, VOC2012 in it, or VOCdevkit/VOC2012."""
    candidates = [root, *_folders(root), *_folders(root / "VOCdevkit")]
    return [path for path in candidates if (path / "Annotations").is_dir() and (path / "JPEGImages").is_dir()]


def yolo_splits(root: Path) -> dict[str, tuple[Path, Path]]:
    """Folders of images and labels of the splits "train" and "val", as Ultralytics or Roboflow lay them out."""
    found: dict[str, tuple[Path, Path]] = {}
    for split, names in (("train", ("train", "train2017")), ("val", ("val", "valid", "validation", "val2017"))):
        for name in names:
            for images, labels in (
                (root / "images" / name, root / "labels" / name), (root / name / "images", root / name / "labels"),
            ):  # fmt: skip
                if images.is_dir() and labels.is_dir():
                    found.setdefault(split, (images, labels))
    if not found and _first(root / "labels", "*.txt") and (root / "images").is_dir():
        found["train"] = (root / "images", root / "labels")
    return found


def hint(root: Path, wanted: Layout) -> str:
    """What to do with a folder that has another layout than the one wanted; empty where nothing is known of it."""
    layout = recognise(root)
    if layout in ("yolo", "voc"):
        command = f"deformvit data convert {root} OUT"
        return f"; this is {NAMES[layout]}: `{command}` writes it in COCO's format, for detection"
    if layout != wanted and layout != "classification":
        return f"; this is {NAMES[layout]}"
    return ""


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return [entry for entry in islice(path.iterdir(), LISTED) if entry.is_dir() and not entry.name.startswith(".")]


def _first(folder: Path, pattern: str) -> Path | None:
    return next(folder.glob(pattern), None) if folder.is_dir() else None
