"""The offset fields as flow colours, and their statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from deformvit.figures import common
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
    outside: float
    """Share of points off the map, where features are zero."""


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
                    float((pos.abs() > 1).any(-1).float().mean()),
                )
            )  # fmt: skip
    return found


def offsets(image: Tensor, layers: Sequence[LayerRecord], index: int = 0, title: str = "") -> Figure:
    """The offset field of every layer (rows) and group (columns) as flow colours: hue is direction, strength is length.

    Args:
        image: (3, H, W), values in [0, 1], as the network saw it; drawn in the first column.
        layers: deformable layers that :func:`deformvit.record` recorded.
        index: which image of the recorded batch.
        title: drawn above.

    Raises:
        ValueError: no deformable layers were recorded.
    """
    common.check_deformable(layers, index)
    hw = (image.shape[-2], image.shape[-1])
    statistics = {(entry.layer, entry.group): entry for entry in offset_statistics(layers, hw, index)}
    cols = 1 + max(layer.points()[1].shape[1] for layer in layers)
    panel = common.panel_height(hw, 2.2)
    figure = Figure(figsize=(2.2 * cols + 0.2, (panel + 0.5) * len(layers) + 0.5), layout="constrained")
    axes = figure.subplots(len(layers), cols, squeeze=False)
    picture = common.picture(image)
    for row, layer in enumerate(layers):
        reference, deformed = layer.points()
        move = layer.pixels(deformed[index], hw) - layer.pixels(reference, hw)
        longest = max(statistics[layer.label, g + 1].largest for g in range(len(move)))
        for col, axis in enumerate(axes[row]):
            axis.set_axis_off()
            group = col - 1
            if col == 0:
                common.show(axis, picture)
                axis.set_title(layer.label, fontsize=8, loc="left", fontweight="bold")
                wheel = axis.inset_axes((0.72, 0.02, 0.26, 0.26 * hw[1] / hw[0]))
                _wheel(wheel)
                wheel.set_title(f"{longest:.1f} px", fontsize=6, pad=1, color="white", backgroundcolor="#00000080")
            elif group < len(move):
                field = flow_colours(move[group].cpu(), longest)
                axis.imshow(field, extent=(0, hw[1], hw[0], 0), interpolation="nearest")
                entry = statistics[layer.label, group + 1]
                saturated = "" if np.isnan(entry.saturated) else f", {100 * entry.saturated:.0f} % at the bound"
                axis.set_title(
                    f"group {group + 1}: mean {entry.mean:.1f}, deviation {entry.deviation:.1f} px\n"
                    f"{100 * entry.outside:.0f} % outside{saturated}", fontsize=6, loc="left",
                )  # fmt: skip
    if title:
        figure.suptitle(title, fontsize=11, parse_math=False)
    return figure


def flow_colours(move: Tensor, longest: float) -> np.ndarray:
    """(H, W, 2) displacements (y, x) -> (H, W, 3) colours: hue by direction, white for none, full at ``longest``."""
    angle = torch.atan2(move[..., 0], move[..., 1]) / (2 * np.pi) % 1.0
    strength = (move.norm(dim=-1) / max(longest, 1e-12)).clamp(0, 1)
    return hsv_to_rgb(torch.stack([angle, strength, torch.ones_like(angle)], -1).numpy())


def _wheel(axis: object) -> None:
    """What direction a colour stands for."""
    line = torch.linspace(-1, 1, 65)
    move = torch.stack(torch.broadcast_tensors(line[:, None], line[None, :]), -1)
    colours = flow_colours(move, 1.0)
    alpha = (move.norm(dim=-1) <= 1).numpy().astype(float)
    axis.imshow(np.dstack([colours, alpha]))  # type: ignore[attr-defined]
    axis.set_axis_off()  # type: ignore[attr-defined]
