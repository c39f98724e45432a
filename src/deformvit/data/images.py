"""Encoded images -> RGB."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from deformvit.errors import UnreadableImage

Transform = Callable[[Image.Image], Any]


def decode(source: bytes | Path, name: str, upright: bool = False) -> Image.Image:
    """Decode an image into RGB.

    Args:
        source: the file, or what is in it.
        name: what messages call it.
        upright: turn photos as the camera was held, if they say how. Not in training and evaluation: annotations of
            data sets count pixels as they are stored.

    Raises:
        UnreadableImage: naming ``name``, when it is no image or a damaged one.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return (ImageOps.exif_transpose(image) if upright else image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"{name}: not a readable image ({error})") from error
