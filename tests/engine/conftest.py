"""Images that the engine's tests train on."""

from __future__ import annotations

import pytest
import torch
from PIL import Image


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Two classes of 36 noisy images: bright above, or bright on the left."""
    root = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(3)
    for split, count in (("train", 24), ("val", 12)):
        for name in ("top", "left"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(0, 120, (28, 28), generator=generator, dtype=torch.uint8)
                half = pixels[:14] if name == "top" else pixels[:, :14]
                half += 100
                Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    return root
