"""Draw the predictions of detectors and segmenters on images."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F


def palette(count: int) -> list[tuple[int, int, int]]:
    """Colours as (red, green, blue) from 0 to 255; hues of neighbours are a golden section of the circle apart."""
    colours = []
    for i in range(count):
        hue, shade = (0.02 + i * 0.618034) % 1.0, (1.0, 0.75, 0.9)[i % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.85 - 0.2 * (i // 3 % 2), shade)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colours


def classes(image: Image.Image, found: Sequence[tuple[str, float]]) -> Image.Image:
    """The image, enlarged if it is small, with a bar for each class beside it.

    Args:
        image: RGB.
        found: names of classes and their probabilities, from 0 to 1.
    """
    times = max(1, round(224 / min(image.size)))
    picture = image.resize((times * image.width, times * image.height), Image.Resampling.LANCZOS)
    side = max(12, min(picture.size) // 16)
    font = ImageFont.load_default(size=side)
    lines = [(f"{name} {100 * score:.1f} %", score) for name, score in found]
    longest = max((font.getlength(text) for text, _ in lines), default=0)
    column, step = round(max(longest, 8 * side) + 2 * side), round(2.2 * side)
    whole = Image.new("RGB", (picture.width + column, max(picture.height, step * len(lines) + side)), "white")
    whole.paste(picture, (0, 0))
    draw = ImageDraw.Draw(whole)
    for row, ((text, score), colour) in enumerate(zip(lines, palette(len(lines)), strict=True)):
        left, top = picture.width + side, side // 2 + row * step
        draw.text((left, top), text, fill="black", font=font)
        bottom = top + round(1.3 * side)
        draw.rectangle([left, bottom, left + (column - 2 * side) * score, bottom + side // 3], fill=colour)
    return whole


def detections(
    image: Tensor, prediction: dict[str, Tensor], classes: Sequence[str], *, threshold: float = 0.5, names: bool = True
) -> Image.Image:
    """Draw boxes, masks, and names with scores of the objects of an image.

    Args:
        image: (3, H, W), RGB from 0 to 1.
        prediction: of :class:`deformvit.systems.Detector`: ``boxes``, ``scores``, ``labels`` and optionally ``masks``.
        classes: names of the labels.
        threshold: objects of lower score are not drawn.
        names: write names and scores where the boxes have room for them, and the number of objects below the image.
    """
    kept = torch.where(prediction["scores"].cpu() >= threshold)[0].flip(0).tolist()  # the highest score on top
    by_class = len(classes) > 1  # otherwise each object has its own colour
    colours = palette(len(classes) if by_class else max(len(kept), 1))
    colour_of = {i: colours[int(prediction["labels"][i]) if by_class else n] for n, i in enumerate(kept)}
    pixels = _pixels(image)
    if "masks" in prediction:
        for i in kept:
            _tint(pixels, prediction["masks"][i].cpu(), colour_of[i])
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    line = max(1, round(min(picture.size) / 320))
    for i in kept:
        draw.rectangle([float(v) for v in prediction["boxes"][i]], outline=colour_of[i], width=line)
    if not names:
        return picture
    font = ImageFont.load_default(size=max(10, min(picture.size) // 32))
    for i in kept:
        score = f"{float(prediction['scores'][i]):.2f}"
        left, top, right, _ = (float(v) for v in prediction["boxes"][i])
        # Names that are wider than their box would hide other objects.
        texts = [f"{classes[int(prediction['labels'][i])]} {score}", score]
        text = next((text for text in texts if font.getlength(text) <= right - left), "")
        if text:
            _label(draw, text, (left, top), colour_of[i], font, picture.size)
    counts = torch.bincount(prediction["labels"].cpu()[kept], minlength=len(classes)).tolist()
    present = [(i, f"{count} {classes[i]}") for i, count in enumerate(counts) if count]
    return _captioned(picture, [(colours[i] if by_class else None, text) for i, text in present])


def labels(image: Tensor, prediction: Tensor, classes: Sequence[str], *, opacity: float = 0.6) -> Image.Image:
    """Draw a label map over its image, with a legend of the classes that occur, largest area first.

    Args:
        image: (3, H, W), RGB from 0 to 1.
        prediction: (H, W) labels.
        classes: their names.
        opacity: opacity of the map, from 0 to 1.
    """
    colours = np.asarray(palette(len(classes)), dtype=np.float32)
    label_map = prediction.cpu().numpy()
    pixels = (1 - opacity) * _pixels(image) + opacity * colours[label_map]
    height, width = label_map.shape
    counts = np.bincount(label_map.ravel(), minlength=len(classes))
    shown = [int(i) for i in counts.argsort()[::-1] if counts[i]]
    side = max(10, min(width, height) // 24)
    font = ImageFont.load_default(size=side)
    step = round(side * 1.5)
    column = round(max(font.getlength(f"{classes[i]} 100.0 %") for i in shown) + 2 * step)
    picture = Image.new("RGB", (width + column, max(height, step * (len(shown) + 1))), "white")
    picture.paste(Image.fromarray(pixels.round().astype(np.uint8)), (0, 0))
    draw = ImageDraw.Draw(picture)
    for row, i in enumerate(shown):
        top = step // 2 + row * step
        draw.rectangle([width + step // 2, top, width + step // 2 + side, top + side], fill=_rgb(colours[i]))
        share = 100 * counts[i] / label_map.size
        draw.text((width + step // 2 + 1.4 * side, top - 1), f"{classes[i]} {share:.1f} %", fill="black", font=font)
    return picture


def label_image(prediction: Tensor, classes: Sequence[str]) -> Image.Image:
    """A label map as an image whose pixel values are the labels; its palette has the colours of :func:`labels`.

    More than 256 classes need 16 bits, which have no palette.
    """
    if len(classes) > 256:
        return Image.fromarray(prediction.cpu().numpy().astype(np.uint16))
    picture = Image.fromarray(prediction.cpu().numpy().astype(np.uint8), mode="P")
    picture.putpalette([value for colour in palette(len(classes)) for value in colour])
    return picture


def _captioned(picture: Image.Image, entries: list[tuple[tuple[int, int, int] | None, str]]) -> Image.Image:
    """The picture with a caption below it: each entry's text, beside its colour if it has one."""
    side = max(10, min(picture.size) // 28)
    font = ImageFont.load_default(size=side)
    corners: list[tuple[float, float]] = []
    x, y = side / 2, side / 2
    for colour, text in entries:
        width = font.getlength(text) + side * (2.5 if colour else 1)
        if x + width > picture.width and x > side:
            x, y = side / 2, y + 1.5 * side
        corners.append((x, y))
        x += width
    captioned = Image.new("RGB", (picture.width, picture.height + round(y + 1.5 * side)), "white")
    captioned.paste(picture, (0, 0))
    draw = ImageDraw.Draw(captioned)
    for (colour, text), (left, top) in zip(entries or [(None, "no objects")], corners or [(x, y)], strict=True):
        top += picture.height
        if colour:
            draw.rectangle([left, top, left + side, top + side], fill=colour)
            left += 1.4 * side
        draw.text((left, top - 1), text, fill="black", font=font)
    return captioned


def _pixels(image: Tensor) -> np.ndarray:
    return (image.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy().copy()


def _rgb(colour: np.ndarray) -> tuple[int, int, int]:
    return int(colour[0]), int(colour[1]), int(colour[2])


def _tint(pixels: np.ndarray, mask: Tensor, colour: tuple[int, int, int]) -> None:
    """Draw a half-transparent mask with an opaque outline, in place."""
    inside = mask.bool()
    shrunk = -F.max_pool2d(-inside[None, None].float(), 3, 1, 1)[0, 0]
    edge = (inside & (shrunk < 0.5)).numpy()
    body = inside.numpy()
    pixels[body] = (0.55 * pixels[body] + 0.45 * np.asarray(colour)).astype(np.uint8)
    pixels[edge] = colour


def _label(
    draw: ImageDraw.ImageDraw, text: str, corner: tuple[float, float], colour: tuple[int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont, size: tuple[int, int],
) -> None:  # fmt: skip
    """Write a name on its colour above a box, or inside it at the upper border of the image."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = min(max(corner[0], 0), max(size[0] - width, 0))
    y = corner[1] - height if corner[1] >= height else corner[1]
    draw.rectangle([x, y, x + width, y + height], fill=colour)
    dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 140
    draw.text((x + 2 - left, y + 2 - top), text, fill="white" if dark else "black", font=font)
