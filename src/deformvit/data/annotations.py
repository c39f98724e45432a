"""COCO's annotation files: lists, boxes and masks, checked as they are read."""

from __future__ import annotations

import json
import math
from array import array
from pathlib import Path
from typing import Any, TypeAlias

from deformvit.errors import DataError

Segmentation: TypeAlias = "list[array[float]] | dict[str, Any]"
"""A mask as it is stored: polygons, each x, y, x, y, ... in pixels; or a run-length encoding {"size", "counts"}."""

MAX_COORDINATE = 1e5
"""Polygons with larger coordinates are malformed: the time and memory to draw an edge grow with its length."""


class Unusable(ValueError):
    """An annotation cannot be used and is left out; the message completes "an annotation ..."."""


NO_MASK = "with an empty segmentation"
_MALFORMED = "with a malformed mask"


def read_coco(path: Path) -> dict[str, list[Any]]:
    """The lists ``images``, ``annotations`` and ``categories`` of a JSON file; their entries are not checked.

    Raises:
        DataError: the file is not JSON, a list is missing, or the images or categories are empty.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({error})") from error
    lists: dict[str, list[Any]] = {}
    for name in ("images", "annotations", "categories"):
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not (entries or name == "annotations"):
            raise DataError(f"{path}: no list of {name}; expected COCO's format for object detection")
        lists[name] = entries
    return lists


def read_box(box: Any) -> tuple[float, float, float, float]:
    """x, y, width, height in pixels, checked to be four finite numbers.

    Raises:
        Unusable: they are not.
    """
    if box is None:
        raise Unusable("without a box")
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(type(value) in (int, float) and math.isfinite(value) for value in box)
    ):
        raise Unusable("with a box that is not four finite numbers")
    return box[0], box[1], box[2], box[3]


def read_segmentation(segmentation: Any) -> Segmentation:
    """Polygons or a run-length encoding, checked as far as is possible without decoding the mask.

    Polygons of fewer than three points enclose nothing and are left out if others remain.

    Args:
        segmentation: a list of polygons, each a list x, y, x, y, ... in pixels; or {"size": [height, width], "counts":
            ...} with the lengths of runs as a list, column by column, or COCO's compressed string.

    Raises:
        Unusable: it is empty or malformed.
    """
    try:
        if isinstance(segmentation, list):
            if not segmentation:
                raise Unusable(NO_MASK)
            # faster_coco_eval takes four numbers for a box.
            polygons = [array("d", polygon) for polygon in segmentation if len(polygon) >= 6]
            if not polygons or not all(map(_is_drawable, polygons)):
                raise Unusable(_MALFORMED)
            return polygons
        (height, width), counts = segmentation["size"], segmentation["counts"]
        if type(height) is not int or type(width) is not int or height <= 0 or width <= 0:
            raise Unusable(_MALFORMED)
        runs = _uncompressed(counts) if isinstance(counts, str) else array("q", counts)
        # faster_coco_eval never returns from comparing encodings that are shorter than the image.
        if min(runs, default=-1) < 0 or sum(runs) != height * width:
            raise Unusable(_MALFORMED)
    except Unusable:
        raise
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise Unusable(_MALFORMED) from error
    if not sum(runs[1::2]):
        raise Unusable("with an empty mask")
    return {"size": [height, width], "counts": counts if isinstance(counts, str) else runs}


def _uncompressed(counts: str) -> array[int]:
    """Lengths of runs in COCO's compressed string.

    A number is written in base 32, lowest digit first, as characters from "0" on; each digit but the last has 32 added.
    The highest bit of the last digit is the sign. From the fourth run on, the number is the difference from the run two
    before it.

    Raises:
        ValueError: another character, or the string ends within a number.
        OverflowError: a number needs more than 64 bits.
    """
    runs = array("q")
    number = bits = 0
    for character in counts.encode("ascii"):
        digit = character - 48
        if not 0 <= digit < 64:
            raise ValueError(f"unexpected character {chr(character)!r}")
        number |= (digit & 31) << bits
        bits += 5
        if digit < 32:
            number -= (digit >> 4) << bits
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = bits = 0
    if bits:
        raise ValueError("the string ends within a number")
    return runs


def _is_drawable(polygon: array[float]) -> bool:
    return len(polygon) % 2 == 0 and math.isfinite(sum(polygon)) and max(map(abs, polygon)) <= MAX_COORDINATE


def run_lengths(segmentation: Segmentation, height: int, width: int) -> dict[str, Any]:
    """COCO's compressed run-length encoding {"size": [height, width], "counts"} of a mask.

    Args:
        segmentation: from :func:`read_segmentation`.
        height: height of the image in pixels.
        width: width of the image in pixels.

    Raises:
        ValueError: the encoding is of another size.
    """
    from faster_coco_eval.core import mask

    if isinstance(segmentation, list):
        return mask.merge(mask.frPyObjects([polygon.tolist() for polygon in segmentation], height, width))
    if segmentation["size"] != [height, width]:
        raise ValueError(f"a mask of {segmentation['size']} on an image of {[height, width]} pixels")
    if isinstance(segmentation["counts"], str):
        return segmentation
    return mask.frPyObjects({"size": [height, width], "counts": segmentation["counts"].tolist()}, height, width)
