"""Draw the predictions of detectors and segmenters on images."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Colour: TypeAlias = "tuple[int, int, int]"
"""Red, green and blue from 0 to 255."""
LEGIBLE = 448
"""Shorter side in pixels of a picture that words are written on, about: smaller images are enlarged."""
BACKGROUND = ("background", "void", "unlabeled", "unlabelled")
"""Names of classes that label maps leave as they are."""
TINT = 0.3
"""Opacity of masks."""


def palette(count: int) -> list[Colour]:
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

    Masks are tinted, outlines have a halo, and words stand where they hide no object. Lines and letters grow with the
    image; a small image is enlarged where words are written.

    Args:
        image: (3, H, W), RGB from 0 to 1.
        prediction: of :class:`deformvit.systems.Detector`: ``boxes``, ``scores``, ``labels`` and optionally ``masks``;
            without ``scores`` annotated objects, which are all drawn.
        classes: names of the labels.
        threshold: objects of lower score are not drawn.
        names: write names and scores where there is room for them, and the number of objects below the image.
    """
    scores = prediction["scores"].cpu() if "scores" in prediction else None
    kept = range(len(prediction["labels"])) if scores is None else torch.where(scores >= threshold)[0].tolist()
    by_class = len(classes) > 1  # otherwise each object has its own colour
    colours = palette(len(classes) if by_class else max(len(kept), 1))
    times = _times(image.shape[1:]) if names else 1
    pixels = _enlarged(_pixels(image), times)
    line = _line(pixels.shape[:2])
    objects = []
    for n, i in enumerate(kept):
        label = int(prediction["labels"][i])
        words = [f"{classes[label]}"] if scores is None else [f"{classes[label]} {scores[i]:.2f}", f"{scores[i]:.2f}"]
        mask = _mask(prediction["masks"][i].cpu(), times) if "masks" in prediction else None
        box = [times * float(value) for value in prediction["boxes"][i]]
        objects.append(_Object(box, mask, colours[label if by_class else n], words if by_class else words[1:]))
    for thing in reversed(objects):  # the highest score on top
        if thing.mask is not None:
            _tint(pixels, thing.mask, thing.colour, line)
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    for thing in reversed(objects):
        if thing.mask is None:
            draw.rectangle(
                [*(v - 1 for v in thing.box[:2]), *(v + 1 for v in thing.box[2:])], outline=_halo(thing.colour)
            )
        draw.rectangle(thing.box, outline=thing.colour, width=line if thing.mask is None else 1)
    if not names:
        return picture
    _write_words(draw, objects, picture.size)
    counts = torch.bincount(prediction["labels"].cpu()[list(kept)], minlength=len(classes)).tolist()
    present = [(i, f"{count} {classes[i]}") for i, count in enumerate(counts) if count]
    return _captioned(picture, [(colours[i] if by_class else None, text) for i, text in present])


def labels(
    image: Tensor, prediction: Tensor, classes: Sequence[str], *, opacity: float = 0.5, names: bool = True
) -> Image.Image:
    """Draw a label map over its image, with a legend of the classes that occur, largest area first.

    Regions are tinted, and their borders have the full colour of their class; a class called background stays as it is.

    Args:
        image: (3, H, W), RGB from 0 to 1.
        prediction: (H, W) labels; labels that are not classes, such as those to ignore, are not tinted.
        classes: their names.
        opacity: opacity of the map, from 0 to 1.
        names: draw the legend; without it the picture has the size of the image.
    """
    colours = np.asarray(palette(len(classes)), dtype=np.float32)
    times = _times(image.shape[1:]) if names else 1
    label_map = _enlarged(prediction.cpu().numpy(), times)
    known = (label_map >= 0) & (label_map < len(classes))
    pixels = _enlarged(_pixels(image), times).astype(np.float32)
    painted = colours[np.where(known, label_map, 0)]
    plain = [i for i, name in enumerate(classes) if name.lower() in BACKGROUND]
    share = np.where(_borders(label_map, _line(label_map.shape)), max(opacity, min(2 * opacity, 1.0)), opacity)
    share = share * (known & ~np.isin(label_map, plain))
    pixels += share[..., None] * (painted - pixels)
    drawn = Image.fromarray(pixels.round().astype(np.uint8))
    if not names:
        return drawn
    counts = np.bincount(label_map[known].ravel(), minlength=len(classes))
    shown = [int(i) for i in counts.argsort(kind="stable")[::-1] if counts[i]]
    width, height = drawn.size
    side = max(12, min(width, height) // 28)
    font, step = ImageFont.load_default(size=side), round(side * 1.5)
    words = [f"{classes[i]} {100 * counts[i] / label_map.size:.1f} %" for i in shown]
    column = round(max((font.getlength(text) for text in words), default=0) + 2 * step)
    picture = Image.new("RGB", (width + column, max(height, step * (len(shown) + 1))), "white")
    picture.paste(drawn, (0, 0))
    draw = ImageDraw.Draw(picture)
    for row, (i, text) in enumerate(zip(shown, words, strict=True)):
        top = step // 2 + row * step
        fill = None if i in plain else _rgb(colours[i])
        draw.rectangle([width + step // 2, top, width + step // 2 + side, top + side], fill, fill or "gray")
        draw.text((width + step // 2 + 1.4 * side, top - 1), text, fill="black", font=font)
    return picture


def thumbnail(picture: Image.Image, side: int = 480) -> Image.Image:
    """A picture that fits into a square; one that is much smaller is enlarged by repeating its pixels."""
    times = side // (2 * max(picture.size))
    if times > 1:
        return picture.resize((times * picture.width, times * picture.height), Image.Resampling.NEAREST)
    small = picture.copy()
    small.thumbnail((side, side))
    return small


def sheet(pictures: Sequence[tuple[Image.Image, str]], columns: int = 4) -> Image.Image:
    """Pictures with a caption below each, row by row.

    Args:
        pictures: at least one, with captions, which are cut to the width of a column.
        columns: pictures of a row, at most.
    """
    columns = min(columns, len(pictures))
    gap, font = 12, ImageFont.load_default(size=15)
    width = max(picture.width for picture, _ in pictures)
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    heights = [max(picture.height for picture, _ in row) + 22 for row in rows]
    size = (columns * (width + gap) + gap, sum(heights) + gap * (len(rows) + 1))
    whole = Image.new("RGB", size, "white")
    draw, top = ImageDraw.Draw(whole), gap
    for row, height in zip(rows, heights, strict=True):
        for i, (picture, caption) in enumerate(row):
            left = gap + i * (width + gap)
            whole.paste(picture, (left, top))
            text = " ".join(caption.split())
            while text and font.getlength(text) > width:
                text = f"{text[: -2 if text[-1] == '…' else -1]}…" if len(text) > 2 else ""
            draw.text((left, top + picture.height + 3), text, fill="black", font=font)
        top += height + gap
    return whole


def label_image(prediction: Tensor, classes: Sequence[str]) -> Image.Image:
    """A label map as an image whose pixel values are the labels; its palette has the colours of :func:`labels`.

    More than 256 classes need 16 bits, which have no palette.
    """
    if len(classes) > 256:
        return Image.fromarray(prediction.cpu().numpy().astype(np.uint16))
    picture = Image.fromarray(prediction.cpu().numpy().astype(np.uint8), mode="P")
    picture.putpalette([value for colour in palette(len(classes)) for value in colour])
    return picture


def _captioned(picture: Image.Image, entries: list[tuple[Colour | None, str]]) -> Image.Image:
    """The picture with a caption below it: each entry's text, beside its colour if it has one."""
    side = max(12, min(picture.size) // 32)
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


@dataclass
class _Object:
    """What is drawn of an object, in pixels of the picture."""

    box: list[float]
    mask: np.ndarray | None
    colour: Colour
    words: list[str]
    """What may be written beside it, the longest first."""


def _write_words(draw: ImageDraw.ImageDraw, objects: list[_Object], size: tuple[int, int]) -> None:
    """Write the words of each object where they hide no object, the surest first; without such a place, none."""
    width, height = size
    cell = max(min(size) // 400, 1)
    objects_at = np.zeros((height // cell + 1, width // cell + 1), bool)
    for thing in objects:
        _occupy(objects_at, thing, cell)
    words_at = np.zeros_like(objects_at)
    side = max(11, min(size) // 40)
    font, pad = ImageFont.load_default(size=side), max(1, side // 8)
    for thing in objects:
        for text in thing.words:
            left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
            w, h = right - left + 2 * pad, bottom - top + 2 * pad
            place = _place(thing, (w, h), objects_at, words_at, cell, size)
            if place is None:
                continue
            x, y = place
            words_at[_cells(x, y, x + w, y + h, cell)] = True
            draw.rectangle([x, y, x + w - 1, y + h - 1], fill=thing.colour)
            draw.text((x + pad - left, y + pad - top), text, fill=_halo(thing.colour), font=font)
            break


def _place(
    thing: _Object, size: tuple[float, float], objects_at: np.ndarray, words_at: np.ndarray, cell: int,
    picture: tuple[int, int],
) -> tuple[float, float] | None:  # fmt: skip
    """The corner where words of this size hide least, or None where they would hide a part of an object or words."""
    (w, h), (left, top, right, bottom) = size, thing.box
    around = [
        (left, top - h - 2), (right - w, top - h - 2), (left, bottom + 2), (right - w, bottom + 2), (right + 2, top),
        (left - w - 2, top), (right + 2, bottom - h), (left - w - 2, bottom - h), ((left + right - w) / 2, top - h - 2),
    ]  # fmt: skip
    if w * h < 0.05 * (right - left) * (bottom - top):  # of large objects a corner of the box may be covered
        around += [(left + 3, top + 3), (right - w - 3, top + 3), (left + 3, bottom - h - 3)]
    best, least = None, 0.1
    for x, y in around:
        if x < 0 or y < 0 or x + w > picture[0] or y + h > picture[1]:
            continue
        cells = _cells(x, y, x + w, y + h, cell)
        hidden = 1.0 if words_at[cells].any() else float(objects_at[cells].mean())
        if hidden < least:
            best, least = (x, y), hidden
    return best


def _occupy(objects_at: np.ndarray, thing: _Object, cell: int) -> None:
    """Mark the cells of an object: of its mask, or of the ellipse in its box, whose corners are mostly background."""
    if thing.mask is not None:
        part = thing.mask[::cell, ::cell]
        objects_at[: part.shape[0], : part.shape[1]] |= part
        return
    left, top, right, bottom = thing.box
    cells = _cells(left, top, right, bottom, cell)
    inside = objects_at[cells]
    rows, columns = (np.linspace(-1, 1, length)[:, None] ** 2 for length in inside.shape)
    inside |= rows + columns.T <= 1


def _cells(left: float, top: float, right: float, bottom: float, cell: int) -> tuple[slice, slice]:
    first, last = (max(int(top) // cell, 0), max(int(left) // cell, 0)), (int(bottom) // cell, int(right) // cell)
    return slice(first[0], max(last[0], first[0]) + 1), slice(first[1], max(last[1], first[1]) + 1)


def _times(size: Sequence[int]) -> int:
    """How often an image (height, width) is enlarged so that words of a legible size fit beside its objects."""
    return max(1, round(LEGIBLE / max(min(size), 1)))


def _line(size: Sequence[int]) -> int:
    """Width of lines on a picture, in pixels."""
    return max(1, round((min(size) / 200) ** 0.75))  # thinner, in proportion, on large pictures


def _enlarged(pixels: np.ndarray, times: int) -> np.ndarray:
    """(H, W, ...) with every pixel repeated, so that what a model saw stays what it was."""
    return pixels.repeat(times, 0).repeat(times, 1)


def _mask(mask: Tensor, times: int) -> np.ndarray:
    return _enlarged(mask.bool().numpy(), times)


def _luminance(colour: Colour) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def _halo(colour: Colour) -> Colour:
    """Black around light colours and white around dark ones: seen on dark, light and busy images."""
    return (0, 0, 0) if _luminance(colour) > 110 else (255, 255, 255)


def _borders(values: np.ndarray, width: int) -> np.ndarray:
    """Where a pixel's value differs from one that is ``width`` away, up, down, left or right."""
    found = np.zeros(values.shape, bool)
    for shift in range(1, width + 1):
        rows, columns = values[shift:] != values[:-shift], values[:, shift:] != values[:, :-shift]
        found[shift:] |= rows
        found[:-shift] |= rows
        found[:, shift:] |= columns
        found[:, :-shift] |= columns
    return found


def _pixels(image: Tensor) -> np.ndarray:
    return (image.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy().copy()


def _rgb(colour: np.ndarray) -> Colour:
    return int(colour[0]), int(colour[1]), int(colour[2])


def _tint(pixels: np.ndarray, mask: np.ndarray, colour: Colour, line: int) -> None:
    """Draw a thin tint of a mask with its outline and a halo around that, in place."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return
    margin = line + 1
    part = (
        slice(max(rows[0] - margin, 0), rows[-1] + margin + 1),
        slice(max(columns[0] - margin, 0), columns[-1] + margin + 1),
    )
    inside = np.pad(mask[part], margin)
    borders, outer = (_borders(inside, width)[margin:-margin, margin:-margin] for width in (line, 1))
    inside = mask[part]
    view = pixels[part]
    view[inside] = ((1 - TINT) * view[inside] + TINT * np.asarray(colour)).astype(np.uint8)
    view[outer & ~inside] = (0.4 * view[outer & ~inside] + 0.6 * np.asarray(_halo(colour))).astype(np.uint8)
    view[borders & inside] = colour
