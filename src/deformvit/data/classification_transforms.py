"""Training augmentation and evaluation preprocessing, built from timm's and torchvision's parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image
from timm.data import create_transform
from torchvision import transforms

from deformvit.config import AugmentConfig, DataConfig


def train_transform(data: DataConfig, augment: AugmentConfig) -> Callable[..., Any]:
    """PIL image -> augmented, normalised (3, img_size, img_size) tensor."""
    transform = create_transform(
        data.img_size,
        is_training=True,
        scale=augment.scale,
        hflip=augment.hflip,
        color_jitter=augment.color_jitter or None,
        auto_augment=augment.auto_augment or None,
        interpolation="bicubic",
        re_prob=augment.random_erasing,
        re_mode="pixel",
        mean=data.mean,
        std=data.std,
    )
    if augment.crop != "resized":
        side = data.img_size
        whole = augment.crop == "none" or data.resize == "square"
        steps: list[Any] = [transforms.Resize((side, side) if whole else side, transforms.InterpolationMode.BICUBIC)]
        if not whole:
            steps.insert(0, _middle)
        if augment.crop == "padded":
            steps.append(transforms.RandomCrop(side, padding=max(side // 8, 1), padding_mode="reflect"))
        transform.transforms[0] = transforms.Compose(steps)
    return transform


def eval_transform(
    img_size: int,
    crop_pct: float,
    resize: str,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Callable[..., Any]:
    """timm's evaluation: bicubic resize to ``img_size / crop_pct``, centre crop; PIL image -> (3, img_size, img_size).

    Args:
        img_size: side of the square that the network sees, in pixels.
        crop_pct: share of the resized image's side that the crop keeps.
        resize: "shorter" keeps the aspect ratio; "square" resizes both sides, as the released code evaluates.
        mean, std: of the RGB channels; by default values stay RGB from 0 to 1.
    """
    *steps, _normalize = create_transform(
        img_size, is_training=False, interpolation="bicubic", crop_pct=crop_pct,
        crop_mode="squash" if resize == "square" else "center",
    ).transforms  # fmt: skip
    if resize == "shorter":
        steps.insert(0, _middle)
    if mean is not None and std is not None:
        steps.append(transforms.Normalize(mean, std))
    return transforms.Compose(steps)


def _middle(image: Image.Image) -> Image.Image:
    """The middle of an image that is more than eight times as long as wide.

    Resizing the shorter side of a very narrow image would make gigabytes of pixels, of which the centre crop keeps few.
    """
    width, height = image.size
    longest = 8 * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max(width - longest, 0) // 2, max(height - longest, 0) // 2
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))
