"""``deformvit data``."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from deformvit.cli.inputs import print_values
from deformvit.errors import DataError, UserError

if TYPE_CHECKING:
    from PIL import Image

    from deformvit.data.inspection import Example, Report

LISTED = 10
"""So many broken images are named; the rest is counted."""


def run(
    action: tyro.conf.Positional[Literal["check", "convert"]],
    root: tyro.conf.Positional[str],
    out: tyro.conf.Positional[str] = "",
    /,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("data.png"),
    examples: int = 6,
    limit: int = 0,
    reduce_zero_label: bool = False,
    ignore_label: int = 255,
) -> None:
    """Look at a data set before training, or convert one from YOLO's or Pascal VOC's layout.

    `check` prints what a data set holds and what is broken in it, and draws examples. It decodes every image, one at a
    time, and ends with status 1 if something cannot be used. `convert` writes COCO's format, as training takes it;
    images are linked where the disk allows it, else copied, and what cannot be read is left out and named.

    Args:
        action: `check` or `convert`.
        root: `check`: a folder as training takes it (class folders, parquet files, shards, COCO's format, ADE20K's
            layout), or `sample`. `convert`: a folder in YOLO's layout (images/, labels/ and data.yaml) or Pascal VOC's
            (JPEGImages/ and Annotations/).
        out: `convert`: the folder to write, a new one.
        output: `check`: where the examples are drawn, a PNG.
        examples: `check`: how many of each split are drawn.
        limit: `check`: look at so many images of each split, evenly spread; 0 looks at all.
        reduce_zero_label: `check`, segmentation: label 0 means no class, and classes count from 1.
        ignore_label: `check`, segmentation: label of pixels without a class.
    """
    if examples < 0 or limit < 0:
        raise UserError(f"examples and limit must not be negative, got {examples} and {limit}")
    if (action == "convert") != bool(out):
        expected = "deformvit data convert ROOT OUT" if action == "convert" else "deformvit data check ROOT"
        raise UserError(f"expected {expected}")
    if action == "convert":
        _convert(Path(root), Path(out))
    else:
        _check(root, output, examples, limit, reduce_zero_label, ignore_label)


def _check(root: str, output: Path, examples: int, limit: int, reduce_zero_label: bool, ignore_label: int) -> None:
    from deformvit.data.inspection import Options, inspect
    from deformvit.data.layouts import NAMES, hint, recognise

    layout = recognise(Path(root))
    if layout in ("yolo", "voc"):
        raise DataError(f"{root}: not a layout that training takes{hint(Path(root), 'coco')}")
    pictures: list[tuple[Image.Image, str]] = []
    options = Options(
        limit, examples, lambda example: pictures.append(_drawn(example)), sys.stderr.isatty(), ignore_label,
        reduce_zero_label,
    )  # fmt: skip
    print(f"{root}: {NAMES[layout]}")
    broken = False
    for split in ("train", "val"):
        try:
            report = inspect(root, split, layout, options)
        except DataError as error:
            print(f"\n{split}\n  {' '.join(str(error).split())}")
            broken = True
            continue
        print(f"\n{split}")
        _print(report)
        broken = broken or bool(report.broken)
    if pictures and examples:
        _save(pictures, output)
    if broken:
        raise SystemExit(1)


def _convert(root: Path, out: Path) -> None:
    from deformvit.data import conversion

    done = conversion.convert(root, out, progress=sys.stderr.isatty())
    for line in done.left_out[:LISTED]:
        print(f"deformvit: left out: {line}", file=sys.stderr)
    if len(done.left_out) > LISTED:
        print(f"deformvit: left out: {len(done.left_out) - LISTED:,} more", file=sys.stderr)
    print_values(
        [
            (str(out / f"{split}.json"), f"{n:,} images, {done.objects[split]:,} objects")
            for split, n in done.images.items()
        ]
    )
    if done.held_out:
        print(f"{root} has no validation images: a tenth of the training images was taken")


def _print(report: Report) -> None:
    looked = "" if report.looked_at == report.images else f", of which {report.looked_at:,} were looked at"
    rows = [("images", f"{report.images:,}{looked}")]
    if report.sizes:
        ordered = sorted(report.sizes, key=lambda size: size[0] * size[1])
        low, middle, high = (f"{w} x {h}" for h, w in (ordered[0], ordered[len(ordered) // 2], ordered[-1]))
        rows.append(("sizes", low if low == high else f"{low} to {high}, median {middle}"))
    if report.objects:
        counts = report.objects
        rows.append(
            ("objects", f"{sum(counts):,}, {min(counts)} to {max(counts)} in an image, median {median(counts):g}")
        )
        rows.append(("masks", "for every object" if report.masks else "none, or not for every object"))
    if report.sides:
        sides = f"{min(report.sides):.0f} to {max(report.sides):.0f} pixels, median {median(report.sides):.0f}"
        rows.append(("sides", f"{sides} (root of a box's area)"))
    print_values(rows)
    total = max(sum(report.classes.values()), 1)
    count = len(report.classes)
    print(f"\n  {count:,} {'class' if count == 1 else 'classes'}, {report.unit} of each")
    shares = report.unit == "pixels"
    values = [(name, f"{100 * n / total:6.2f} %" if shares else f"{n:8,}") for name, n in report.classes.items()]
    print_values([(f"  {name}", value) for name, value in values] or [("  none", "")])
    for title, lines in (("broken", report.broken), ("look at this", report.remarks)):
        if lines:
            print(f"\n  {title}")
            for line in lines[:LISTED]:
                print(f"    {' '.join(line.split())}")
            if len(lines) > LISTED:
                print(f"    and {len(lines) - LISTED:,} more")


def _drawn(example: Example) -> tuple[Image.Image, str]:
    """An example with what is known of it, and its caption."""
    import torch
    from torchvision.transforms.v2 import functional

    from deformvit import drawing

    picture, caption = example.image, example.name
    pixels = functional.pil_to_tensor(picture) / 255
    if example.label:
        caption = f"{example.label} ({example.name})"
    elif example.objects is not None:
        picture = drawing.detections(pixels, example.objects, example.classes)
    elif example.label_map is not None:
        picture = drawing.labels(pixels, torch.from_numpy(example.label_map), example.classes)
    return drawing.thumbnail(picture), caption


def _save(pictures: list[tuple[Image.Image, str]], output: Path) -> None:
    from deformvit import drawing
    from deformvit.storage import write_atomically

    sheet = drawing.sheet(pictures)
    write_atomically(output, lambda path: sheet.save(path, "PNG"))
    print(f"\n{output}: {len(pictures)} examples")
