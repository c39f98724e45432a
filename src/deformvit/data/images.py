"""Encoded images -> RGB."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from deformvit.errors import UnreadableImage

Transform = Callable[[Image.Image], Any]


def decode(source: bytes | Path, name: str) -> Image.Image:
    """Decode an image into RGB.

    Raises:
        UnreadableImage: naming ``name``, when it is no image or a damaged one.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"{name}: not a readable image ({error})") from error
