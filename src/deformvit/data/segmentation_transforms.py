"""Augmentation of images with a class label for every pixel, and their preparation for evaluation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from deformvit.config import IMAGENET_MEAN, SegmentationDataConfig
from deformvit.errors import UserError
from deformvit.sizes import fit

Transform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""uint8 image (3, H, W) and labels (H, W) -> float32 image in [0, 1] and int64 labels of the same size."""
REDRAWS = 10
"""How often at most a crop is drawn again because one class covers too much of it."""


def train_transform(data: SegmentationDataConfig) -> Transform:
    """Random resize, crop, flip and photometric distortion; smaller images are filled up at the bottom and right.

    The result is (3, crop_size, crop_size), not normalised, and (crop_size, crop_size). Filled pixels have the colour
    ``data.mean``, which is 0 after normalisation, and ``data.ignore_label``. All randomness comes from torch's
    generator.

    Raises:
        UserError: ``data.ratio_range`` is not a range of positive factors.
    """
    low, high = data.ratio_range
    if not 0 < low <= high:
        raise UserError(f"data.ratio_range must be two positive factors, the smaller first, got {data.ratio_range}")
    return _TrainTransform(data)


def eval_transform(_data: SegmentationDataConfig) -> Transform:
    """Image and labels at their own size, not normalised: segmenters resize and normalise, and predict at that size."""
    return _unchanged


def distort(image: Tensor) -> Tensor:
    """Random brightness, contrast, saturation and hue of an image (3, H, W) in [0, 1], each for half of the images.

    The ranges are SSD's as in published segmentation recipes: up to 32 of 255 is added or subtracted, contrast and
    saturation are multiplied by 0.5 to 1.5, hues rotate by up to 36 degrees. Contrast comes before saturation and hue
    or after them. Unlike torchvision's RandomPhotometricDistort this keeps the order of the channels.
    """
    if _coin(0.5):
        image = (image + _uniform(-32 / 255, 32 / 255)).clamp(0, 1)
    contrast = _uniform(0.5, 1.5) if _coin(0.5) else 1.0
    first = _coin(0.5)
    if first:
        image = (image * contrast).clamp(0, 1)
    if _coin(0.5):
        image = saturate(image, _uniform(0.5, 1.5))
    if _coin(0.5):
        image = F.adjust_hue(image, _uniform(-0.1, 0.1))
    return image if first else (image * contrast).clamp(0, 1)


def saturate(image: Tensor, factor: float) -> Tensor:
    """Multiply the saturation of HSV, at most to 1, of an image (3, H, W) in [0, 1]; hue and value stay."""
    value, least = image.amax(0, keepdim=True), image.amin(0, keepdim=True)
    # Saturation is (value - least) / value: distances from the value scale with it, and it is 1 where least is 0.
    limit = value / (value - least).clamp(min=1e-6)
    return (value - (value - image) * limit.clamp(max=factor)).clamp(min=0)  # rounding may leave it below


class _TrainTransform:
    """A class and not a closure, which cannot be pickled for spawned loader processes."""

    def __init__(self, data: SegmentationDataConfig) -> None:
        self.data = data

    def __call__(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        data, side = self.data, self.data.crop_size
        size = fit(labels.shape, data.scale, _uniform(*data.ratio_range))
        # Plain tensors: torchvision resizes masks by NEAREST, which shifts them by up to half a pixel.
        image, labels = image.as_subclass(Tensor), labels.as_subclass(Tensor)
        image = F.resize(image, size, InterpolationMode.BILINEAR, antialias=True)
        labels = F.resize(labels[None], size, InterpolationMode.NEAREST_EXACT)[0]
        top, left = self._corner(labels)
        image = image[:, top : top + side, left : left + side].float() / 255
        labels = labels[top : top + side, left : left + side]
        if _coin(data.hflip):
            image, labels = image.flip(-1), labels.flip(-1)
        if data.color:
            image = distort(image)
        height, width = labels.shape
        filled = torch.tensor(data.mean or IMAGENET_MEAN).view(3, 1, 1).repeat(1, side, side)
        filled[:, :height, :width] = image
        classes = torch.full((side, side), data.ignore_label)
        classes[:height, :width] = labels
        return filled, classes

    def _corner(self, labels: Tensor) -> tuple[int, int]:
        """Top and left of the crop, drawn again while one class covers too much of it, at most REDRAWS times."""
        side = self.data.crop_size
        rows, columns = (max(length - side, 0) + 1 for length in labels.shape)
        for redraws in range(REDRAWS + 1):
            top, left = int(torch.randint(rows, ())), int(torch.randint(columns, ()))
            if redraws == REDRAWS or rows * columns == 1 or self.data.cat_max_ratio >= 1:
                break
            crop = labels[top : top + side, left : left + side]
            counts = torch.bincount(crop[crop != self.data.ignore_label].long())
            # A crop of a single class or of ignored pixels alone does not pass.
            if counts.numel() and counts.max() < self.data.cat_max_ratio * counts.sum():
                break
        return top, left


def _unchanged(image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return image.as_subclass(Tensor).float() / 255, labels.as_subclass(Tensor).long()


def _coin(probability: float) -> bool:
    return bool(torch.rand(()) < probability)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))
