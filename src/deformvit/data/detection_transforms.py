"""Training augmentation of images with boxes and masks, built from torchvision's parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from deformvit.config import DetectionDataConfig
from deformvit.sizes import fit

Target = dict[str, Tensor]
Transform = Callable[[tv_tensors.Image, Target], tuple[Tensor, Target]]


class ShortestSize(v2.RandomShortestSize):
    """Resizes to :func:`deformvit.sizes.fit`, the shorter side being one of the sizes at random.

    torchvision's own rounds down, to 799 instead of 800 and to 0 for an image one pixel wide, and resizes masks by
    NEAREST, which shifts them by up to half a pixel against the image.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        size = v2.query_size(flat_inputs)
        shorter = self.min_size[int(torch.randint(len(self.min_size), ()))]
        longest = self.max_size or shorter * max(size)  # where there is no limit, one that no image exceeds
        return {"size": fit(size, (min(shorter, longest), longest))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        mode = v2.InterpolationMode.NEAREST_EXACT if isinstance(inpt, tv_tensors.Mask) else self.interpolation
        return functional.resize(inpt, params["size"], interpolation=mode, antialias=self.antialias)


class CropBetween(v2.Transform):
    """Crops a random part; each side is drawn from ``low`` to ``high`` pixels, at most the image's own."""

    def __init__(self, low: int, high: int) -> None:
        super().__init__()
        self.low, self.high = low, high

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        size = v2.query_size(flat_inputs)
        height, width = (_draw(min(self.low, side), min(self.high, side)) for side in size)
        return {
            "top": _draw(0, size[0] - height), "left": _draw(0, size[1] - width), "height": height, "width": width
        }  # fmt: skip

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return functional.crop(inpt, **params)


def _draw(low: int, high: int) -> int:
    """A random integer from low to high, both included."""
    return int(torch.randint(low, high + 1, ()))


class _ToTensors:
    """To plain tensors: the image float32 from 0 to 1; boxes, masks and labels keep their types.

    Args:
        smallest: pixels; objects whose box has a shorter side are left out, and so are those with an empty mask. 0
            keeps all objects.
    """

    def __init__(self, smallest: float) -> None:
        self.smallest = smallest

    def __call__(self, image: tv_tensors.Image, target: Target) -> tuple[Tensor, Target]:
        plain = {name: value.as_subclass(Tensor) for name, value in target.items()}
        if self.smallest > 0:
            boxes = plain["boxes"]
            kept = (boxes[:, 2:] - boxes[:, :2] >= self.smallest).all(1)
            if "masks" in plain:
                kept &= plain["masks"].flatten(1).any(1).bool()
            plain = {name: value if name == "image_id" else value[kept] for name, value in plain.items()}
        return functional.to_dtype(image, torch.float32, scale=True).as_subclass(Tensor).contiguous(), plain


def train_transform(data: DetectionDataConfig) -> Transform:
    """The augmentation of a configuration.

    Takes an image uint8 (3, H, W) and its target as :class:`deformvit.data.detection.CocoImages` gives them. Returns
    plain tensors: the image float32 (3, h, w) from 0 to 1, not normalised, and the target with ``boxes`` float32 (N, 4)
    and ``masks`` uint8 (N, h, w) of the remaining objects, which are at least one pixel wide and high. Crops clip
    boxes and do not shrink them to the remaining mask, as usual in training on COCO.
    """
    resize = ShortestSize(data.min_size, data.max_size, antialias=True)
    steps: list[Any] = [v2.RandomPhotometricDistort()] if data.color else []
    if data.crop == "branch":
        # DETR's sizes are for shorter sides up to 800 pixels.
        scale = max(data.min_size) / 800
        first, low, high = [round(side * scale) for side in (400, 500, 600)], round(384 * scale), round(600 * scale)
        steps.append(v2.RandomChoice([resize, v2.Compose([ShortestSize(first), CropBetween(low, high), resize])]))
    else:
        steps.append(resize)
        if data.crop == "square":
            steps.append(CropBetween(data.crop_size, data.crop_size))
    steps += [v2.RandomHorizontalFlip(data.hflip), v2.RandomVerticalFlip(data.vflip), v2.ClampBoundingBoxes()]
    return v2.Compose([*steps, _ToTensors(smallest=1)])


def eval_transform() -> Transform:
    """The image float32 (3, H, W) from 0 to 1 at its own size and the target as plain tensors, all objects kept."""
    return _ToTensors(smallest=0)
