"""Images for the tests of the page."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def photo(height: int, width: int, kind: str = "JPEG") -> bytes:
    """An image of smooth colours, so that large ones are quickly made."""
    y, x = np.mgrid[0 : 1 : complex(height), 0 : 1 : complex(width)]
    pixels = np.stack([255 * y, 255 * x, 255 * (1 - y)], -1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()
