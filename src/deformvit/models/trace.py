"""Record the inputs and deformed points of attention layers in a forward pass, without changing its results."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from deformvit.errors import UserError
from deformvit.layers import DeformableAttention, DeformedPoints
from deformvit.layers.attention_weights import LAYERS, QueryAttention, attention_weights, layer_kind
from deformvit.models.network import DAT
from deformvit.ops import grid


def layer_label(name: str) -> str:
    """``stages.2.blocks.3.attn`` -> ``stage 3, block 4``; the path itself in other networks than ours."""
    match = re.search(r"(?:^|\.)stages\.(\d+)\.blocks\.(\d+)\.attn$", name)
    return f"stage {int(match[1]) + 1}, block {int(match[2]) + 1}" if match else name


@dataclass(frozen=True)
class LayerRecord:
    """One attention layer in one forward pass; positions are (y, x), normalised to [-1, 1] on the layer's map."""

    name: str
    """Path of the layer in the model, e.g. ``stages.2.blocks.1.attn``."""
    layer: nn.Module
    """The layer itself."""
    x: Tensor
    """(B, C, H, W) input of the layer."""
    reference: Tensor | None = None
    """Deformable layers: (H_G, W_G, 2) reference points."""
    deformed: Tensor | None = None
    """Deformable layers: (B, G, H_G, W_G, 2) deformed points."""
    stride: int = 0
    """Image pixels between neighbours on the map; 0 if unknown, then the map's cells divide the image evenly."""
    origin: float = 0.0
    """Centre of the map's first pixel, in image pixels on either axis; not used where ``stride`` is 0."""

    @property
    def kind(self) -> str:
        """Name of the block, as in a model's ``blocks``: "deformable", "window", "shifted", "neighborhood", ..."""
        return layer_kind(self.layer)

    @property
    def label(self) -> str:
        """What people are told the layer is called, see :func:`layer_label`."""
        return layer_label(self.name)

    @property
    def feature_hw(self) -> tuple[int, int]:
        """(H, W) of the map that queries come from and keys are sampled on."""
        return self.x.shape[-2], self.x.shape[-1]

    @property
    def shift(self) -> float:
        """Image pixels by which the map's cells are centred up and left of the middles of the patches they stand for.

        0 where patches do not overlap. Kernels that overlap, such as 3 x 3 with stride 2, are centred on every n-th
        pixel beginning with the first, so that the map's middle lies up and left of the image's.
        """
        return self.stride / 2 - self.origin if self.stride else 0.0

    @property
    def num_heads(self) -> int:
        """Heads M."""
        return int(self.layer.num_heads)  # type: ignore[arg-type] # all LAYERS have it

    @property
    def key_sets(self) -> list[int]:
        """Index of the set of keys of every head, which is its group, or 0 where all heads have the same keys."""
        if isinstance(self.layer, DeformableAttention):
            return [head // (self.num_heads // self.layer.groups) for head in range(self.num_heads)]
        return list(range(self.num_heads)) if self.kind == "deformable_detr" else [0] * self.num_heads

    def points(self) -> tuple[Tensor, Tensor]:
        """(H_G, W_G, 2) reference points and (B, G, H_G, W_G, 2) deformed points.

        Raises:
            UserError: the layer has no points.
        """
        if self.reference is None or self.deformed is None:
            raise UserError(f"{self.label} is a {self.kind} layer, which has no deformed points")
        return self.reference, self.deformed

    def pixels(self, positions: Tensor, image_hw: tuple[int, int]) -> Tensor:
        """(..., 2) positions -> (y, x) in image pixels, where (0, 0) is the top left corner of the image."""
        return self.index_pixels(grid.to_index(positions, self.feature_hw), image_hw)

    def index_pixels(self, index: Tensor, image_hw: tuple[int, int]) -> Tensor:
        """(..., 2) fractional (row, column) on the layer's map -> (y, x) in image pixels."""
        if self.stride:
            return index * self.stride + self.origin
        return (index + 0.5) * self._cell_size(index, image_hw)

    def query_at(self, pixel: tuple[float, float], image_hw: tuple[int, int]) -> int:
        """Index, row by row, of the query nearest to (y, x) in image pixels."""
        yx = torch.tensor(pixel, dtype=torch.float64)
        index = (yx - self.origin) / self.stride if self.stride else yx / self._cell_size(yx, image_hw) - 0.5
        height, width = self.feature_hw
        row, column = (min(max(round(float(v)), 0), n - 1) for v, n in zip(index, (height, width), strict=True))
        return row * width + column

    def attend(self, queries: Tensor | list[int], image: int = 0) -> QueryAttention:
        """Keys and attention weights of chosen queries, computed from ``x``.

        Args:
            queries: indices of queries, row by row.
            image: index in the batch.
        """
        chosen = torch.as_tensor(queries, dtype=torch.long, device=self.x.device)
        x = self.x[image : image + 1]
        deformed = None if self.deformed is None else self.deformed[image : image + 1]
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            return attention_weights(self.layer, x, chosen, deformed)

    def _cell_size(self, like: Tensor, image_hw: tuple[int, int]) -> Tensor:
        return like.new_tensor([side / n for side, n in zip(image_hw, self.feature_hw, strict=True)])


@dataclass
class Trace:
    """The attention layers that :func:`deformvit.record` recorded, in the order of the forward pass."""

    layers: list[LayerRecord] = field(default_factory=list)
    """Of all kinds that :mod:`deformvit.layers.attention_weights` supports."""

    @property
    def deformable(self) -> list[LayerRecord]:
        """The layers with deformed points."""
        return [layer for layer in self.layers if layer.deformed is not None]

    def find(self, word: str) -> LayerRecord:
        """The layer of that label, ``stage 3, block 4``, or number among those with points (or all if none has any).

        Raises:
            UserError: there is no such layer; the message lists those there are.
        """
        known = self.deformable or self.layers
        if word.strip().isdecimal() and 1 <= int(word) <= len(known):
            return known[int(word) - 1]
        for layer in self.layers:
            if "".join(word.lower().split()) == "".join(layer.label.lower().split()):
                return layer
        raise UserError(f"there is no layer {word!r}; there are " + "; ".join(layer.label for layer in self.layers))


@contextmanager
def record(model: nn.Module) -> Iterator[Trace]:
    """Record the attention layers of a model, or of a model inside ``model``, while the context is open.

    Forward hooks copy the inputs and deformed points of layers; attention weights are computed from them on request
    (:meth:`~deformvit.models.trace.LayerRecord.attend`). The hooks are removed when the context closes.
    """
    trace = Trace()
    handles = []
    geometry = {
        f"{path}.{stage}.".lstrip("."): stride_and_origin
        for path, module in model.named_modules()
        if isinstance(module, DAT)
        for stage, stride_and_origin in module.stage_geometry().items()
    }
    deformed_points: dict[nn.Module, Tensor] = {}  # of layers whose forward pass has not ended

    def record_points(module: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> None:
        deformed_points[module] = output.detach().clone()

    def record_layer(name: str, module: nn.Module, x: Tensor) -> None:
        stride, origin = next((g for stage, g in geometry.items() if name.startswith(stage)), (0, 0.0))
        reference, deformed = None, None
        if isinstance(module, DeformableAttention):
            deformed = deformed_points.pop(module.points)
            reference = module.points.reference(*x.shape[2:], device=deformed.device, dtype=deformed.dtype)
        trace.layers.append(LayerRecord(name, module, x.detach().clone(), reference, deformed, stride, origin))

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        return lambda module, inputs, _output: record_layer(name, module, inputs[0])

    for name, module in model.named_modules():
        if isinstance(module, LAYERS):
            handles.append(module.register_forward_hook(hook(name)))
        if isinstance(module, DeformedPoints):
            handles.append(module.register_forward_hook(record_points))
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def scale_offsets(model: nn.Module, factor: float) -> Iterator[None]:
    """Multiply the offsets of all deformed points by ``factor`` while the context is open.

    With ``bound="range"``, as in all models of the first paper, the offset range becomes ``factor * s``: 0 leaves keys
    on the reference grid, 1 changes nothing.
    """

    def scale(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        assert isinstance(module, DeformedPoints)
        reference = module.reference(*inputs[0].shape[2:], device=output.device, dtype=output.dtype)
        return reference + factor * (output - reference)

    layers = [module for module in model.modules() if isinstance(module, DeformedPoints)]
    # Before the hooks of record, which then record the scaled points, whichever context is opened first.
    handles = [] if factor == 1 else [layer.register_forward_hook(scale, prepend=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
