"""Record where a model looks in a forward pass, without changing what it computes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from deformvit.layers import DeformableAttention, DeformedPoints
from deformvit.layers.attended import LAYERS, Attended, attended, kind
from deformvit.models.network import DAT
from deformvit.ops import grid


@dataclass(frozen=True)
class LayerRecord:
    """One attention layer in one forward pass; positions are (y, x), normalised to [-1, 1]."""

    name: str
    """Path of the layer in the model, e.g. ``stages.2.blocks.1.attn``."""
    layer: nn.Module
    x: Tensor
    """(B, C, H, W) what the layer was given."""
    reference: Tensor | None = None
    """Deformable layers: (H_G, W_G, 2) reference points."""
    deformed: Tensor | None = None
    """Deformable layers: (B, G, H_G, W_G, 2) deformed points."""
    stride: int = 0
    """Pixels of the image between neighbours on the map; 0 if unknown, then the map's cells divide the image evenly."""
    first: float = 0.0
    """Where in the image the centre of the map's first pixel lies, on either axis."""

    @property
    def kind(self) -> str:
        """Name of the attention, as in a model's ``blocks``: "deformable", "window", "shifted", "neighborhood", ..."""
        return kind(self.layer)

    @property
    def label(self) -> str:
        """The layer's path in words, if it is one of our models'."""
        found = re.search(r"(?:^|\.)stages\.(\d+)\.blocks\.(\d+)\.attn$", self.name)
        return f"stage {int(found[1]) + 1}, block {int(found[2]) + 1}" if found else self.name

    @property
    def feature_hw(self) -> tuple[int, int]:
        """(H, W) of the map that queries come from and keys are sampled on."""
        return self.x.shape[-2], self.x.shape[-1]

    @property
    def num_heads(self) -> int:
        """Heads M."""
        return int(self.layer.num_heads)  # type: ignore[arg-type] # all LAYERS have it

    @property
    def key_sets(self) -> list[int]:
        """For every head the number of the set of keys that it sees: its group, or 0 where all heads see the same."""
        if isinstance(self.layer, DeformableAttention):
            return [head // (self.num_heads // self.layer.groups) for head in range(self.num_heads)]
        return list(range(self.num_heads)) if self.kind == "deformable_detr" else [0] * self.num_heads

    def points(self) -> tuple[Tensor, Tensor]:
        """Reference and deformed points.

        Raises:
            ValueError: the layer has no points.
        """
        if self.reference is None or self.deformed is None:
            raise ValueError(f"{self.name} is a {self.kind} layer, which has no deformed points")
        return self.reference, self.deformed

    def pixels(self, positions: Tensor, image_hw: tuple[int, int]) -> Tensor:
        """(..., 2) positions -> (y, x) pixels of the image, the top left corner being (0, 0)."""
        return self.index_pixels(grid.to_index(positions, self.feature_hw), image_hw)

    def index_pixels(self, index: Tensor, image_hw: tuple[int, int]) -> Tensor:
        """(..., 2) fractional (row, column) of the layer's map -> (y, x) pixels of the image."""
        if self.stride:
            return index * self.stride + self.first
        return (index + 0.5) * self._cell(index, image_hw)

    def query_at(self, pixel: tuple[float, float], image_hw: tuple[int, int]) -> int:
        """The query nearest to (y, x) in pixels of the image, counted row by row of the map."""
        place = torch.tensor(pixel, dtype=torch.float64)
        index = (place - self.first) / self.stride if self.stride else place / self._cell(place, image_hw) - 0.5
        height, width = self.feature_hw
        row, column = (min(max(round(float(v)), 0), n - 1) for v, n in zip(index, (height, width), strict=True))
        return row * width + column

    def attend(self, queries: Tensor | list[int], image: int = 0) -> Attended:
        """What chosen queries (counted row by row) of an image of the batch attend to; computed now, from ``x``."""
        chosen = torch.as_tensor(queries, dtype=torch.long, device=self.x.device)
        one = slice(image, image + 1)
        with torch.no_grad(), torch.autocast(self.x.device.type, enabled=False):
            return attended(self.layer, self.x[one], chosen, None if self.deformed is None else self.deformed[one])

    def _cell(self, like: Tensor, image_hw: tuple[int, int]) -> Tensor:
        return like.new_tensor([side / n for side, n in zip(image_hw, self.feature_hw, strict=True)])


@dataclass
class Trace:
    """What :func:`record` saw, layer after layer."""

    layers: list[LayerRecord] = field(default_factory=list)
    """All attention layers that :mod:`deformvit.layers.attended` knows."""

    @property
    def deformable(self) -> list[LayerRecord]:
        """The layers with deformed points."""
        return [layer for layer in self.layers if layer.deformed is not None]


@contextmanager
def record(model: nn.Module) -> Iterator[Trace]:
    """Record the attention layers of ``model``, also of a model inside another, while the context is open.

    Forward hooks copy the input of every layer, and the points as they pass; attention weights are computed from them
    when asked for (:meth:`LayerRecord.attend`). Outside the context there are no hooks, so nothing is paid.
    """
    trace = Trace()
    handles = []
    geometry = {
        f"{path}.{stage}".lstrip("."): place
        for path, module in model.named_modules()
        if isinstance(module, DAT)
        for stage, place in module.stage_geometry().items()
    }
    seen: dict[nn.Module, Tensor] = {}

    def watch(name: str, layer: nn.Module) -> None:
        stride, first = next((g for stage, g in geometry.items() if name.startswith(f"{stage}.")), (0, 0.0))

        def passed(module: nn.Module, inputs: tuple[Tensor], _output: Tensor) -> None:
            x, reference, deformed = inputs[0].detach().clone(), None, None
            if isinstance(module, DeformableAttention):
                deformed = seen.pop(module.points)
                size = inputs[0].shape[2:]
                reference = module.points.reference(*size, device=deformed.device, dtype=deformed.dtype)
            trace.layers.append(LayerRecord(name, module, x, reference, deformed, stride, first))

        handles.append(layer.register_forward_hook(passed))

    def points(module: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> None:
        seen[module] = output.detach().clone()

    for name, module in model.named_modules():
        if isinstance(module, LAYERS):
            watch(name, module)
        if isinstance(module, DeformedPoints):
            handles.append(module.register_forward_hook(points))
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def scale_offsets(model: nn.Module, factor: float) -> Iterator[None]:
    """Move the deformed points of all layers to ``factor`` times their offset while the context is open.

    With ``bound="range"``, as in all models of the first paper, that is the offset range ``factor * s``: 0 leaves keys
    on the reference grid, 1 changes nothing.
    """

    def move(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        assert isinstance(module, DeformedPoints)
        reference = module.reference(*inputs[0].shape[2:], device=output.device, dtype=output.dtype)
        return reference + factor * (output - reference)

    layers = [module for module in model.modules() if isinstance(module, DeformedPoints)]
    # Before what records, so that this is what is recorded, whichever context is opened first.
    handles = [] if factor == 1 else [layer.register_forward_hook(move, prepend=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
