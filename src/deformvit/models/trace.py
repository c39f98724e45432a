"""Record where a model's deformed points lie, without changing what it computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from deformvit.layers import DeformedPoints
from deformvit.models.network import DAT
from deformvit.ops import grid


@dataclass(frozen=True)
class LayerPoints:
    """The points of one deformable layer in one forward pass; positions are (y, x), normalised to [-1, 1]."""

    name: str
    """Path of the layer in the model, e.g. ``stages.2.blocks.1.attn``."""
    reference: Tensor
    """(H_G, W_G, 2) reference points."""
    deformed: Tensor
    """(B, G, H_G, W_G, 2) deformed points."""
    feature_hw: tuple[int, int]
    """(H, W) of the map that is sampled."""
    stride: int = 0
    """Pixels of the image between neighbours on the map; 0 if unknown, then the map's cells divide the image evenly."""
    first: float = 0.0
    """Where in the image the centre of the map's first pixel lies, on either axis."""

    def pixels(self, positions: Tensor, image_hw: tuple[int, int]) -> Tensor:
        """(..., 2) positions -> (y, x) pixels of the image, the top left corner being (0, 0)."""
        index = grid.to_index(positions, self.feature_hw)
        if self.stride:
            return index * self.stride + self.first
        return (index + 0.5) * index.new_tensor([image_hw[0] / self.feature_hw[0], image_hw[1] / self.feature_hw[1]])


@dataclass
class Trace:
    """What :func:`record_points` saw, layer after layer."""

    layers: list[LayerPoints] = field(default_factory=list)


@contextmanager
def record_points(model: nn.Module) -> Iterator[Trace]:
    """Record the points of every deformable layer of ``model`` while the context is open.

    Forward hooks read the points as they pass; outside the context there are none, so nothing is paid.
    """
    trace = Trace()
    handles = []
    geometry = {  # also of a model inside another: timm's feature extractors, detectors
        f"{path}.{stage}".lstrip("."): place
        for path, module in model.named_modules()
        if isinstance(module, DAT)
        for stage, place in module.stage_geometry().items()
    }
    for name, module in model.named_modules():
        if isinstance(module, DeformedPoints):

            def hook(
                layer: nn.Module, inputs: tuple[Tensor], output: Tensor, name: str = name.removesuffix(".points")
            ) -> None:
                assert isinstance(layer, DeformedPoints)
                size = inputs[0].shape[2:]
                reference = layer.reference(*size, device=output.device, dtype=output.dtype)
                stride, first = next((g for stage, g in geometry.items() if name.startswith(f"{stage}.")), (0, 0.0))
                points = LayerPoints(name, reference, output.detach().clone(), (size[0], size[1]), stride, first)
                trace.layers.append(points)

            handles.append(module.register_forward_hook(hook))
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()
