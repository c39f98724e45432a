"""Small sets of rectangles: in COCO's format and in ADE20K's layout."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

SIZES = [(48, 64), (40, 56), (64, 48)]
"""(H, W) of images; none is square."""


def draw(seed, empty=False):
    """An image with a red and a green rectangle, and where they are: (label, left, top, width, height)."""
    generator = np.random.default_rng(seed)
    height, width = SIZES[seed % len(SIZES)]
    pixels = generator.integers(0, 60, (height, width, 3)).astype(np.uint8)
    found = []
    for label in () if empty else (0, 1):
        w, h = generator.integers(12, 20, 2)
        left = int(generator.integers(0, width // 2 - w + 8)) + label * (width // 2 - 8)
        top = int(generator.integers(0, height - h))
        pixels[top : top + h, left : left + w, label] = 230
        found.append((label, left, top, int(w), int(h)))
    return pixels, found


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """Eight training and five validation images in COCO's format, one of each without objects."""
    root = tmp_path_factory.mktemp("shapes")
    for split, count in (("train", 8), ("val", 5)):
        (root / split).mkdir()
        images, annotations = [], []
        for i in range(count):
            pixels, found = draw(i + 100 * (split == "val"), empty=i == 3)
            Image.fromarray(pixels).save(root / split / f"{i}.png")
            height, width = pixels.shape[:2]
            images.append({"id": i + 1, "file_name": f"{i}.png", "height": height, "width": width})
            for label, left, top, w, h in found:
                corners = [left, top, left + w, top, left + w, top + h, left, top + h]
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": i + 1, "category_id": (2, 5)[label], "iscrowd": 0,
                     "bbox": [left, top, w, h], "area": w * h, "segmentation": [corners]}
                )  # fmt: skip
        categories = [{"id": 2, "name": "red"}, {"id": 5, "name": "green"}]
        described = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"{split}.json").write_text(json.dumps(described))
    return root


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    """The same pictures with a label for every pixel: background, red, green."""
    root = tmp_path_factory.mktemp("labelled")
    for split, count in (("training", 8), ("validation", 5)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            pixels, found = draw(i + 100 * (split == "validation"))
            labels = np.zeros(pixels.shape[:2], np.uint8)
            for label, left, top, w, h in found:
                labels[top : top + h, left : left + w] = label + 1
            Image.fromarray(pixels).save(root / "images" / split / f"{i}.png")
            Image.fromarray(labels).save(root / "annotations" / split / f"{i}.png")
    (root / "classes.txt").write_text("background\nred\ngreen\n")
    return root
