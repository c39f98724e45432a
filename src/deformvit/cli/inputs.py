"""What the commands share: images as users name them, and what is printed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from deformvit.errors import UserError

DEFAULT_MODEL = "dat_nano.cifar10"


def image_files(images: list[Path]) -> list[Path]:
    """Files and what is in folders, in the order given."""
    from deformvit.data.images import IMAGE_SUFFIXES

    paths: list[Path] = []
    for path in images:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise UserError(f"{path}: no images in this folder")
            paths += found
        elif path.is_file():
            paths.append(path)
        else:
            raise UserError(f"{path}: no such file or folder")
    return paths


def sources(images: list[Path]) -> list[tuple[str, Any]]:
    """Names, and paths or decoded images, in the order given; ``photo`` and ``sample`` are the embedded ones."""
    found: list[tuple[str, Any]] = []
    for path in images:
        if path.exists() or str(path) not in ("photo", "sample"):
            found += [(str(file), file) for file in image_files([path])]
        elif str(path) == "photo":
            from deformvit.data.classification import SAMPLES

            found.append(("cat.jpg", SAMPLES / "cat.jpg"))
        else:
            from deformvit.data import open_split

            split = open_split("sample", "val")
            found += [(f"sample{i}", split[i][0]) for i in range(8)]
    return found


def names_for(paths: list[str]) -> list[str]:
    """Names of the files to write for images, made different where two folders hold the same name."""
    taken: set[str] = set()
    names = []
    for path in paths:
        name = Path(path).stem
        while name in taken:
            name += "_"
        taken.add(name)
        names.append(name)
    return names


def report(failed: list[str]) -> None:
    """Print what could not be read, and end with an error if there was anything."""
    for message in failed:
        print(f"deformvit: {message}", file=sys.stderr)
    if failed:
        raise SystemExit(1)


def print_values(rows: list[tuple[str, str]]) -> None:
    """Names and values in two columns."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")
