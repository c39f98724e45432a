"""Shared by the commands: input images, names of output files, and printing."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from deformvit.errors import UserError

DEFAULT_MODEL = "dat_nano.cifar10"


def image_files(images: list[Path]) -> list[Path]:
    """The files, and the images in the folders and their subfolders, in the order given.

    Raises:
        UserError: a path does not exist, or a folder has no images.
    """
    from deformvit.data.images import IMAGE_SUFFIXES

    paths: list[Path] = []
    for path in images:
        if path.is_dir():
            in_folder = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            if not in_folder:
                raise UserError(f"{path}: no images in this folder")
            paths += in_folder
        elif path.is_file():
            paths.append(path)
        elif re.match(r"https?:/", str(path)):
            address = str(path).replace(":/", "://", 1)  # of which a path keeps one slash
            raise UserError(f"{address!r}: an address; download the image and give its path")
        else:
            raise UserError(f"{path}: no such file or folder")
    return paths


def sources(images: list[Path]) -> list[tuple[str, Any]]:
    """Name of each input image, and its path or the decoded image, in the order given.

    Where no file of that name exists, ``photo`` is the packaged photo and ``sample`` eight test images of the packaged
    Fashion-MNIST.

    Raises:
        UserError: as :func:`image_files`, or nothing is named.
    """
    if not images:
        raise UserError("no images: name files or folders, or the packaged `photo` or `sample`")
    named: list[tuple[str, Any]] = []
    for path in images:
        if path.exists() or str(path) not in ("photo", "sample"):
            named += [(str(file), file) for file in image_files([path])]
        elif str(path) == "photo":
            from deformvit.data.classification import SAMPLES

            named.append(("cat.jpg", SAMPLES / "cat.jpg"))
        else:
            from deformvit.data import open_split

            split = open_split("sample", "val")
            named += [(f"sample{i}", split[i][0]) for i in range(8)]
    return named


def names_for(paths: list[str], endings: tuple[str, ...] = ("",)) -> list[str]:
    """Stems of the paths as names of output files; underscores are appended to a stem that occurs again.

    Args:
        paths: inputs, in order.
        endings: what is written for each input is its name with each of these at the end.
    """
    used: set[str] = set()
    names = []
    for path in paths:
        name = Path(path).stem
        while any(name + ending in used for ending in endings):
            name += "_"
        used |= {name + ending for ending in endings}
        names.append(name)
    return names


def refuse_to_overwrite(inputs: list[str], outputs: list[Path]) -> None:
    """Raise ``UserError`` if an output file is one of the inputs."""
    known = {Path(path).resolve() for path in inputs}
    for output in outputs:
        if output.resolve() in known:
            raise UserError(f"{output} is one of the images; write to another folder with --output")


def refuse_existing(outputs: list[Path]) -> None:
    """Raise ``UserError`` if an output file exists, so that it is never overwritten by mistake."""
    for output in outputs:
        if output.exists():
            raise UserError(f"{output} exists; delete it, or write elsewhere")


def report(failed: list[str]) -> None:
    """Print the messages about unreadable images; exit with status 1 if there are any."""
    for message in failed:
        print(f"deformvit: {message}", file=sys.stderr)
    if failed:
        raise SystemExit(1)


def print_values(rows: list[tuple[str, str]]) -> None:
    """Print names and values in two columns."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")
