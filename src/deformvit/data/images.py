"""Image files: the only place where they are opened, and the formats that are accepted."""

from __future__ import annotations

import io
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from deformvit.errors import DataError, UnreadableImage

Transform = Callable[[Image.Image], Any]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Pillow's names of the accepted formats. Others stay closed: Pillow starts Ghostscript on EPS, whatever the file's
name. PPM covers PBM, PGM and PNM."""
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
)
"""Suffixes, in lower case, by which images are found in folders and archives."""
_PNG_COLOURS = {0: "grayscale", 2: "RGB", 3: "palette", 4: "grayscale with alpha", 6: "RGBA"}
_DAMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises on damaged files."""


def decode(source: bytes | Path, name: str, upright: bool = False) -> Image.Image:
    """Decode an image into RGB.

    Args:
        source: a regular file, or its content.
        name: how messages call it.
        upright: apply the orientation that a camera stored in the file. Not for training and evaluation: annotations
            of data sets count pixels as they are stored.

    Raises:
        UnreadableImage: naming ``name``, when it is not a regular file, not of an accepted format, or damaged.
    """
    try:
        content = io.BytesIO(source) if isinstance(source, bytes) else _regular(source)
        with Image.open(content, formats=FORMATS) as image:
            pixels = _eight_bits(image)
            return (ImageOps.exif_transpose(pixels) if upright else pixels).convert("RGB")
    except _DAMAGE as error:
        raise UnreadableImage(f"{name}: not a readable image ({_reason(error)})") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """The high byte of 16-bit grayscale, which Pillow's conversion to RGB would clip at 255; other images unchanged."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        high = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        high.info = image.info  # with the orientation
        return high
    return image


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` indices, evenly spread: which files stand for all of a large data set."""
    return [i * count // most for i in range(most)] if count > most else list(range(count))


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image in pixels, from the file's header; the image is not decoded.

    Raises:
        UnreadableImage: as :func:`decode`, as far as the header tells.
    """
    try:
        with Image.open(_regular(path), formats=FORMATS) as image:
            return image.height, image.width
    except _DAMAGE as error:
        raise UnreadableImage(f"{path}: not a readable image ({_reason(error)})") from error


def read_annotation(path: Path) -> NDArray[np.generic]:
    """The numbers in a PNG of labels, (H, W), from 0 to 65535; those of a palette are its indices.

    Raises:
        DataError: naming the file, when it is not a regular file, not a PNG, damaged, or not one channel of 8 or 16
            bits or a palette.
    """
    try:
        data = _regular(path).read_bytes()
        # PNG alone: JPEG's compression changes labels, whatever the file is called.
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            labels = np.asarray(image)
    except _DAMAGE as error:
        raise DataError(f"{path}: not a readable PNG ({_reason(error, 'PNG')})") from error
    depth, colour = data[24], data[25]  # of the header, which is always the first chunk of the file
    # Grayscale of fewer bits is refused: decoders stretch it to 255, and programs that shrink files rely on that, so
    # whether a 1 means class 1 or 255 depends on the program that wrote it.
    if not (colour == 3 or (colour == 0 and depth >= 8)):
        kind = f"{depth}-bit {_PNG_COLOURS[colour]}"
        raise DataError(f"{path}: {kind}; labels are one channel of 8 or 16 bits, or the indices of a palette")
    return labels


def _regular(path: Path) -> Path:
    """``path``, checked to be a regular file: opening a pipe or a device may block."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("not a regular file")
    return path


def _reason(error: Exception, formats: str = "JPEG, PNG, WebP, BMP, GIF, TIFF or PPM") -> str:
    """What is wrong with a file, without its name, which Pillow gives as the address of an object."""
    if isinstance(error, UnidentifiedImageError):
        return f"expected {formats}"
    return (isinstance(error, OSError) and error.strerror) or str(error)
