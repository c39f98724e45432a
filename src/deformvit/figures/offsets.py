"""The offset fields as flow colours, and their statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from deformvit.figures import common
from deformvit.figures.common import Picture
from deformvit.figures.sheet import Panel, sheet
from deformvit.layers import DeformableAttention
from deformvit.models.trace import LayerRecord
from deformvit.ops import grid


@dataclass(frozen=True)
class OffsetStatistics:
    """How far the points of one group of a layer move in an image."""

    layer: str
    """As :attr:`~deformvit.models.trace.LayerRecord.label`."""
    group: int
    """Counted from 1."""
    mean: float
    """Mean length, in pixels of the image."""
    largest: float
    """In pixels of the image."""
    deviation: float
    """Of the offsets from their mean, in pixels: 0 where all points move alike."""
    saturated: float
    """Share of coordinates at 95 % or more of the offset range; NaN where there is no range."""
    outside: common.Outside
    """The points off the map, where features fade to zero."""


def offset_statistics(
    layers: Sequence[LayerRecord], image_hw: tuple[int, int], index: int = 0
) -> list[OffsetStatistics]:
    """Of every layer and group, for an image of the recorded batch whose size was (H, W)."""
    found = []
    for layer in layers:
        reference, deformed = layer.points()
        size = (reference.shape[0], reference.shape[1])
        assert isinstance(layer.layer, DeformableAttention)  # only these have points
        points = layer.layer.points
        ranged = points.bound == "range" and points.offset_net is not None
        for group, pos in enumerate(deformed[index], 1):
            move = (layer.pixels(pos, image_hw) - layer.pixels(reference, image_hw)).flatten(0, 1).cpu()
            saturated = float("nan")
            if ranged:
                cell = grid.key_cell(size, points.convention, device=pos.device, dtype=pos.dtype)
                reach = (pos - reference).abs() / (cell * points.offset_range)
                saturated = float((reach >= 0.95).float().mean())
            length = move.norm(dim=-1)
            found.append(
                OffsetStatistics(
                    layer.label, group, float(length.mean()), float(length.max()),
                    float((move - move.mean(0)).norm(dim=-1).mean()), saturated,
                    common.outside(layer, index, group - 1),
                )
            )  # fmt: skip
    return found


def offsets(
    image: Picture, layers: Sequence[LayerRecord], index: int = 0, title: str = "", *,
    hw: tuple[int, int] | None = None, width: float | None = None,
) -> Figure:  # fmt: skip
    """The offset field of every layer and group as flow colours on the image: hue is direction, strength is length.

    Args:
        image, layers, index, title, hw, width: as in :func:`~deformvit.figures.points`.

    Raises:
        ValueError: no deformable layers were recorded.
    """
    common.check_deformable(layers, index)
    hw = common.size_of(image, hw)
    statistics = {(entry.layer, entry.group): entry for entry in offset_statistics(layers, hw, index)}
    picture = common.muted(common.picture(image), 0.0)
    parts = []
    for layer in layers:
        reference, deformed = layer.points()
        move = (layer.pixels(deformed[index], hw) - layer.pixels(reference, hw)).cpu()
        groups = [statistics[layer.label, group + 1] for group in range(len(move))]
        longest = max(entry.largest for entry in groups)
        parts.append(
            [
                Panel(
                    partial(_field, picture, flow_colours(field, longest), longest, hw),
                    f"{layer.label}, group {entry.group}",
                    f"mean {entry.mean:.1f}, deviation {entry.deviation:.1f} px; {_bound(entry)}",
                )
                for entry, field in zip(groups, move, strict=True)
            ]
        )
    notes = [
        "A cell is a reference point, its colour the offset, the wheel says which; px: pixels of what the network saw. "
        "Deviation: of the offsets from their mean, 0 where all points move alike.",
        *common.outside_notes(layers),
        *common.grid_notes(layers),
    ]
    return sheet(parts, common.Extent(hw).aspect, title=title, notes=notes, width=width)


def _bound(entry: OffsetStatistics) -> str:
    saturated = "" if np.isnan(entry.saturated) else f", {100 * entry.saturated:.0f} % at the bound"
    return f"{entry.outside}{saturated}"


def _field(
    picture: np.ndarray, field: np.ndarray, longest: float, hw: tuple[int, int], axis: Axes, _inches: float
) -> None:
    common.show(axis, picture, common.Extent(hw))
    axis.imshow(field, extent=(0, hw[1], hw[0], 0), interpolation="nearest", alpha=0.72)
    wide, tall = (0.22 * min(hw) / side for side in (hw[1], hw[0]))
    wheel = axis.inset_axes((0.98 - wide, 0.02, wide, tall))
    _wheel(wheel)
    wheel.set_title(f"{longest:.1f} px", fontsize=6, pad=2, color="white", path_effects=common.halo("white", 0.6))


def flow_colours(move: Tensor, longest: float) -> np.ndarray:
    """(H, W, 2) displacements (y, x) -> (H, W, 3) colours: hue by direction, white for none, full at ``longest``."""
    angle = torch.atan2(move[..., 0], move[..., 1]) / (2 * np.pi) % 1.0
    strength = (move.norm(dim=-1) / max(longest, 1e-12)).clamp(0, 1)
    return hsv_to_rgb(torch.stack([angle, strength, torch.ones_like(angle)], -1).numpy())


def _wheel(axis: Axes) -> None:
    """What direction a colour stands for."""
    line = torch.linspace(-1, 1, 65)
    move = torch.stack(torch.broadcast_tensors(line[:, None], line[None, :]), -1)
    colours = flow_colours(move, 1.0)
    alpha = (move.norm(dim=-1) <= 1).numpy().astype(float)
    axis.imshow(np.dstack([colours, alpha]))
    axis.set_axis_off()
