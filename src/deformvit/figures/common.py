"""Shared by the figures: colours, the image under the marks, margins, checks, and what is said of the points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patheffects import AbstractPathEffect, Normal, Stroke
from PIL import Image
from torch import Tensor

from deformvit.errors import UserError
from deformvit.models.trace import LayerRecord
from deformvit.ops import grid

COLOURS = ("#ff4d6d", "#4cc9f0", "#ffd166", "#80ed99", "#c77dff", "#ff9f1c")
WEIGHTS = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Of red, green and blue in the luminance."""
SHARP = 448
"""Pixels of the shorter side below which pictures are enlarged smoothly."""

Picture = Tensor | Image.Image
"""(3, H, W) from 0 to 1, or RGB."""


def picture(image: Picture) -> np.ndarray:
    """(H, W, 3) from 0 to 1 for Matplotlib; small images enlarged, smoothly, so that marks lie on a picture."""
    if isinstance(image, Tensor):
        pixels = (255 * image.permute(1, 2, 0).clamp(0, 1).float()).round().byte().cpu().numpy()
        image = Image.fromarray(pixels)
    if min(image.size) < SHARP:
        times = min(SHARP / min(image.size), 4 * SHARP / max(image.size))
        if times > 1:
            image = image.resize((round(times * image.width), round(times * image.height)), Image.Resampling.BICUBIC)
    return np.asarray(image.convert("RGB"), dtype=np.float32) / 255


def size_of(image: Picture, hw: tuple[int, int] | None) -> tuple[int, int]:
    """(H, W) in whose pixels places are given: what the network saw, or the image's own."""
    if hw is not None:
        return hw
    return (image.shape[-2], image.shape[-1]) if isinstance(image, Tensor) else (image.height, image.width)


def muted(image: np.ndarray, colour: float = 0.55, light: float = 0.48) -> np.ndarray:
    """Less colourful, and of middle brightness, so that marks stand out and what is dark is seen.

    Args:
        image: (H, W, 3).
        colour: share of the colour that is kept.
        light: mean luminance that brighter images get, and that darker ones come near to.
    """
    grey = (image @ WEIGHTS)[..., None]
    mean = float(np.clip(grey.mean(), 1e-3, 1 - 1e-3))
    calm = colour * image + (1 - colour) * grey
    if mean > light:
        return calm * (light / mean)
    return calm ** max(np.log(light) / np.log(mean), 0.5)


@dataclass(frozen=True)
class Extent:
    """What a panel shows: the image and as much around it as points leave it, in pixels that the network saw."""

    hw: tuple[int, int]
    top: float = 0.0
    left: float = 0.0
    bottom: float = 0.0
    right: float = 0.0

    @property
    def aspect(self) -> float:
        """Height by width; very long images are not drawn at full length."""
        height, width = self.hw
        return min(max((height + self.top + self.bottom) / (width + self.left + self.right), 0.4), 2.5)

    def distance(self, inches: float, cells: Sequence[int]) -> float:
        """Points (1/72 inch) between neighbours of a grid of (rows, columns), in a panel of that width."""
        height, width = self.hw
        scale = 72 * inches / (width + self.left + self.right)
        return scale * min(height / cells[0], width / cells[1])


def extent_of_layers(layers: Sequence[LayerRecord], index: int, hw: tuple[int, int]) -> Extent:
    """With room for the reference and deformed points of layers."""
    places = [
        layer.pixels(positions, hw) for layer in layers for positions in (layer.points()[0], layer.points()[1][index])
    ]
    return extent_of(places, hw)


def extent_of(points: Sequence[Tensor], hw: tuple[int, int]) -> Extent:
    """With room for (..., 2) points in pixels, up to a third of a side beyond the image."""
    places = torch.cat([p.reshape(-1, 2).float().cpu() for p in points])
    sides = torch.tensor(hw, dtype=torch.float32)
    before, after = (-places).amax(0) / sides, (places - sides).amax(0) / sides
    room = [
        side * min(max(far + 0.045, 0.0), 0.33)
        for far, side in zip([*before.tolist(), *after.tolist()], [*hw, *hw], strict=True)
    ]
    return Extent(hw, *room)


def show(axis: Axes, image: np.ndarray, extent: Extent) -> None:
    """The image where the network's pixels are, (0, 0) at its top left corner, on grey where there is none."""
    height, width = extent.hw
    axis.set_axis_on()
    axis.set(xticks=[], yticks=[], facecolor="0.92")
    axis.spines[:].set_visible(False)
    axis.imshow(image, extent=(0, width, height, 0), interpolation="antialiased")
    axis.set_xlim(-extent.left, width + extent.right)
    axis.set_ylim(height + extent.bottom, -extent.top)


def edges(image: np.ndarray, places: np.ndarray, hw: tuple[int, int]) -> list[str]:
    """Black on light ground and white on dark for (N, 2) places (y, x): the edge that a mark is seen by."""
    at = places / np.asarray(hw) * np.asarray(image.shape[:2])
    inside = ((at >= 0) & (at < image.shape[:2])).all(1)
    row, column = np.clip(at.astype(int), 0, np.asarray(image.shape[:2]) - 1).T
    light = np.where(inside, image[row, column] @ WEIGHTS, 1.0)  # beyond the image the ground is light
    return ["black" if value > 0.45 else "white" for value in light]


def halo(colour: str | tuple[float, float, float], width: float) -> list[AbstractPathEffect]:
    """A border along a line: black around a light colour, white around a dark one."""
    rgb = np.asarray(to_rgb(colour), dtype=np.float32)
    return [Stroke(linewidth=width + 1.6, foreground="black" if float(rgb @ WEIGHTS) > 0.4 else "white"), Normal()]


def check_index(layers: Sequence[LayerRecord], index: int) -> None:
    """Raise ``ValueError`` unless every layer saw an image of that number."""
    for layer in layers:
        if not 0 <= index < layer.x.shape[0]:
            raise ValueError(f"index must be from 0 to {layer.x.shape[0] - 1}, the recorded batch, got {index}")


def check_deformable(layers: Sequence[LayerRecord], index: int) -> None:
    """Raise ``UserError`` unless there are deformable layers; else as :func:`check_index`."""
    if not layers:
        raise UserError("no deformable layers were recorded; the model has none")
    check_index(layers, index)


@dataclass(frozen=True)
class Outside:
    """Points of a group off the map: beyond the centres of its outermost cells, where features fade to zero."""

    count: int
    points: int
    """Of the group, in all."""
    farthest: float
    """Cells of the map from the outermost cell's centre; from 1 on a point reads zeros."""
    clamped: int
    """Points that were moved back to the border, in models which do that (DAT++)."""

    def __str__(self) -> str:
        if self.clamped:
            return f"{self.clamped} of {self.points} held at the map's border"
        if not self.count:
            return "all on the map"
        return f"{self.count} of {self.points} off the map, by up to {self.farthest:.1f} cells"


def outside(layer: LayerRecord, index: int, group: int | None = None) -> Outside:
    """Of a group (from 0), or all, of a deformable layer, for an image of the recorded batch."""
    deformed = layer.points()[1][index]
    position = (deformed if group is None else deformed[group]).reshape(-1, 2).float().cpu()
    last = torch.tensor(layer.feature_hw) - 1
    cells = grid.to_index(position, layer.feature_hw)
    beyond = (-cells).maximum(cells - last).clamp(min=0).amax(-1)
    clamped = getattr(layer.layer.points, "bound", "") == "clamp"
    return Outside(
        int((beyond > 1e-5).sum()), len(position), float(beyond.max()),
        int((position.abs() == 1).any(-1).sum()) if clamped else 0,
    )  # fmt: skip


def outside_notes(layers: Sequence[LayerRecord]) -> list[str]:
    """What :class:`Outside` means in these layers."""
    clamped = {getattr(layer.layer.points, "bound", "") == "clamp" for layer in layers}
    off = "Off the map: beyond the centres of its outermost cells, from where features fade to zero over one cell."
    held = "Held at the border: offsets that lead off the map end at the centres of its outermost cells."
    return [*([off] if False in clamped else []), *([held] if True in clamped else [])]


def grid_notes(layers: Sequence[LayerRecord]) -> list[str]:
    """A sentence where the reference grid lies beside the middle of the image, as after overlapping embeddings."""
    shifts = {layer.label.split(",")[0]: layer.shift for layer in layers if layer.shift}
    if not shifts:
        return []
    said = ", ".join(f"{stage} by {shift:g} pixels" for stage, shift in shifts.items())
    return [
        f"Grids lie up and left of the image's middle, {said}: overlapping embeddings centre a map's cells on every "
        "n-th pixel from the image's first on, not on the middles of patches."
    ]
