"""What a model costs: parameters, multiply-adds and the memory that training keeps, counted on shapes alone.

Multiply-adds come from torch's FlopCounterMode, with attention as the matrix products it is. What that counter leaves
out is added as the counters of the papers do: bilinear sampling as four multiply-adds for each sampled value (eight in
volumes), norms as five operations for each value. With these the papers' printed digits come out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from deformvit.ops import neighborhood


@dataclass(frozen=True)
class Complexity:
    """The cost of one image."""

    parameters: int
    products: int
    """Multiply-adds of convolutions, linear layers and attention."""
    sampling: int
    """Multiply-adds of bilinear sampling: of features, and of position tables at displacements."""
    norms: int
    """Operations of LayerNorms."""
    activations: int | None
    """Bytes that the backward pass needs of a forward pass in float32, attention matrices and biases
    materialised; None if they were not asked for."""

    @property
    def multiply_adds(self) -> int:
        """All together; the papers' FLOPs."""
        return self.products + self.sampling + self.norms


def _sampling_2d(_x: Any, _grid: Any, *_args: Any, out_shape: Any = None, **_kwargs: Any) -> int:
    return 2 * 4 * math.prod(out_shape)


def _sampling_3d(_x: Any, _grid: Any, *_args: Any, out_shape: Any = None, **_kwargs: Any) -> int:
    return 2 * 8 * math.prod(out_shape)


def _norm(x: Any, *_args: Any, **_kwargs: Any) -> int:
    return 2 * 5 * math.prod(x)


@contextmanager
def _single_query_tiles() -> Iterator[None]:
    """Neighbourhood attention as defined, every query with its own keys, not the dense tiles it is computed in."""
    before = neighborhood.TILE
    neighborhood.TILE = 1
    try:
        yield
    finally:
        neighborhood.TILE = before


def measure(build: Callable[[], nn.Module], size: tuple[int, int, int], activations: bool = True) -> Complexity:
    """Count the cost of one image.

    Args:
        build: makes the model; called on torch's meta device where it can be, so that nothing is allocated or computed.
        size: (channels, H, W) of the image.
        activations: count what training keeps too.
    """
    try:
        with torch.device("meta"):
            model = build()
    except (NotImplementedError, RuntimeError):  # older timm models compute drop rates with tensors as they are built
        model = build().to("meta")
    image = torch.empty(1, *size, device="meta")
    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            torch.ops.aten.grid_sampler_2d: _sampling_2d,
            torch.ops.aten.grid_sampler_3d: _sampling_3d,
            torch.ops.aten.native_layer_norm: _norm,
        },
    )
    with torch.no_grad(), _single_query_tiles(), sdpa_kernel(SDPBackend.MATH), counter:
        model.eval()(image)
    counts = {str(operator): count for operator, count in counter.get_flop_counts()["Global"].items()}
    sampling = sum(count for operator, count in counts.items() if "grid_sampler" in operator)
    norms = sum(count for operator, count in counts.items() if "layer_norm" in operator)
    return Complexity(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        products=(sum(counts.values()) - sampling - norms) // 2,
        sampling=sampling // 2,
        norms=norms // 2,
        activations=_saved_bytes(model, image) if activations else None,
    )


def _saved_bytes(model: nn.Module, image: Tensor) -> int:
    """Bytes of all tensors that autograd saves, each storage once, weights and the image aside."""
    known = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers(), image)}
    saved: dict[int, Tensor] = {}  # keeping the tensors keeps addresses from being used twice

    def pack(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage()._cdata
        if address not in known:
            saved[address] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), sdpa_kernel(SDPBackend.MATH):
        model.train()(image)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
