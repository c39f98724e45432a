"""COCO's annotation files: their lists, boxes and masks, checked before anything is done with them."""

from __future__ import annotations

import json
import math
from array import array
from pathlib import Path
from typing import Any, TypeAlias

from deformvit.errors import DataError

Segmentation: TypeAlias = "list[array[float]] | dict[str, Any]"
"""A mask as it is kept: polygons, each x, y, x, y, ... in pixels; or a run-length encoding {"size", "counts"}."""

FARTHEST = 1e5
"""Polygons with coordinates beyond this are damage: the time and memory to draw an edge grow with its length."""


class Unusable(ValueError):
    """An annotation that is left out; the message completes "an annotation ..."."""


NO_MASK = "with an empty segmentation"
_MALFORMED = "with a malformed mask"


def read_coco(path: Path) -> dict[str, list[Any]]:
    """The lists ``images``, ``annotations`` and ``categories`` of a JSON file; what is in them is not checked.

    Raises:
        DataError: no JSON, or a list is missing or, but for annotations, empty.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({error})") from error
    lists: dict[str, list[Any]] = {}
    for name in ("images", "annotations", "categories"):
        found = content.get(name) if isinstance(content, dict) else None
        if not isinstance(found, list) or not (found or name == "annotations"):
            raise DataError(f"{path}: no list of {name}; expected COCO's format for object detection")
        lists[name] = found
    return lists


def read_box(box: Any) -> tuple[float, float, float, float]:
    """x, y, width, height in pixels, checked to be four finite numbers.

    Raises:
        Unusable: they are not; the message completes "an annotation ...".
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
    """Polygons or a run-length encoding, checked as far as that is possible without drawing them.

    Polygons of fewer than three points enclose nothing and are left out, as long as others remain.

    Args:
        segmentation: a list of polygons, each a list x, y, x, y, ... in pixels; or {"size": [height, width], "counts":
            ...} with the lengths of runs as a list, column by column, or COCO's compressed string.

    Raises:
        Unusable: it is something else; the message completes "an annotation ...".
    """
    try:
        if isinstance(segmentation, list):
            if not segmentation:
                raise Unusable(NO_MASK)
            # Four numbers would be taken for a box by faster_coco_eval.
            polygons = [array("d", polygon) for polygon in segmentation if len(polygon) >= 6]
            if not polygons or not all(map(_can_be_drawn, polygons)):
                raise Unusable(_MALFORMED)
            return polygons
        (height, width), counts = segmentation["size"], segmentation["counts"]
        if type(height) is not int or type(width) is not int or height <= 0 or width <= 0:
            raise Unusable(_MALFORMED)
        runs = _uncompressed(counts) if isinstance(counts, str) else array("q", counts)
        # faster_coco_eval compares encodings that end before the image does for ever.
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

    Each is a number of digits to the base 32 from the lowest, written as the characters from "0" on; those that do not
    end it are higher by 32. The highest bit of the last digit is the sign. From the fourth run on, the number is the
    difference from the run before the last.

    Raises:
        ValueError: other characters, or an end within a number.
        OverflowError: a number beyond 64 bits.
    """
    runs = array("q")
    number = bits = 0
    for character in counts.encode("ascii"):
        digit = character - 48
        if not 0 <= digit < 64:
            raise ValueError(f"character {character}")
        number |= (digit & 31) << bits
        bits += 5
        if digit < 32:
            number -= (digit >> 4) << bits
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = bits = 0
    if bits:
        raise ValueError("ends within a number")
    return runs


def _can_be_drawn(polygon: array[float]) -> bool:
    return len(polygon) % 2 == 0 and math.isfinite(sum(polygon)) and max(map(abs, polygon)) <= FARTHEST


def run_lengths(segmentation: Segmentation, height: int, width: int) -> dict[str, Any]:
    """COCO's compressed run-length encoding {"size": [height, width], "counts"} of a mask.

    Args:
        segmentation: of :func:`read_segmentation`.
        height: of the image in pixels, on which polygons are drawn.
        width: of the image.

    Raises:
        ValueError: an encoding of another size.
    """
    from faster_coco_eval.core import mask

    if isinstance(segmentation, list):
        return mask.merge(mask.frPyObjects([polygon.tolist() for polygon in segmentation], height, width))
    if segmentation["size"] != [height, width]:
        raise ValueError(f"a mask of {segmentation['size']} on an image of {[height, width]} pixels")
    if isinstance(segmentation["counts"], str):
        return segmentation
    return mask.frPyObjects({"size": [height, width], "counts": segmentation["counts"].tolist()}, height, width)
