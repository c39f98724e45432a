"""What a model costs: parameters, multiply-adds and the memory that training keeps, counted on shapes alone.

Multiply-adds of matrix products, convolutions and attention come from torch's formulas. What these leave out is added
as the papers' counters do: bilinear sampling as four multiply-adds for each sampled value (eight in volumes), norms as
five operations for each value. With these the papers' printed digits come out. Neighbourhood attention is counted as
defined, every query with its own keys, not in the tiles in which it is computed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from deformvit.ops.neighborhood import tile_size

SAMPLING = {torch.ops.aten.grid_sampler_2d: 4, torch.ops.aten.grid_sampler_3d: 8}
"""Multiply-adds of bilinear sampling for each sampled value."""
NORMS = {torch.ops.aten.native_layer_norm: 5}
"""Operations of a norm for each value."""


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
        """The sum of products, sampling and norms; the papers' FLOPs."""
        return self.products + self.sampling + self.norms


def count_complexity(
    build: Callable[[], nn.Module], image: tuple[int, int, int], activations: bool = False
) -> Complexity:
    """Count the cost of one image.

    Args:
        build: makes the model; called on torch's meta device, so that nothing is allocated or computed.
        image: (channels, H, W).
        activations: count the memory of activations too.
    """
    try:
        with torch.device("meta"):
            model = build()
    except (NotImplementedError, RuntimeError):  # older timm models compute drop rates with tensors as they are built
        model = build().to("meta")
    x = torch.empty(1, *image, device="meta")
    with torch.no_grad(), tile_size(1), sdpa_kernel(SDPBackend.MATH), _Counter() as counter:
        model.eval()(x)
    return Complexity(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        products=counter.products,
        sampling=counter.sampling,
        norms=counter.norms,
        activations=_activation_bytes(model, x) if activations else None,
    )


def _activation_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes of all tensors that autograd saves, each storage once, without weights and the image."""
    known = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers(), x)}
    saved: dict[int, Tensor] = {}  # holding the tensors keeps their storages' addresses from being used again

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in known:
            saved[_storage(tensor)] = tensor
        return tensor

    saving = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with saving, sdpa_kernel(SDPBackend.MATH), _Counter():
        model.train()(x)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def _storage(tensor: Tensor) -> int:
    """Address of the storage object: tensors on the meta device have no memory to be told apart by."""
    return tensor.untyped_storage()._cdata


class _Counter(TorchDispatchMode):
    """Sums what the operators on the meta device cost, and remembers which shapes they return.

    PyTorch derives shapes on the meta device in Python, which takes nearly all the time of a count. The blocks of a
    stage, and the models of a table, call the same operators with the same shapes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products = self.sampling = self.norms = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        spec = _output_spec(func, _describe(args), _describe(tuple(kwargs.items())))
        out = func(*args, **kwargs) if spec is None else _empty(spec)
        operator = func.overloadpacket
        if operator in SAMPLING:
            self.sampling += SAMPLING[operator] * math.prod(out.shape)
        elif operator in NORMS:
            self.norms += NORMS[operator] * math.prod(args[0].shape)
        elif operator in flop_registry:
            self.products += flop_registry[operator](*args, **kwargs, out_val=out) // 2
        return out


@functools.cache
def _output_spec(func: Any, args: Any, kwargs: Any) -> Any:
    """What an operator returns for arguments of this description, described too; None unless it is new tensors on the
    meta device."""
    inputs, options = _empty(args), dict(_empty(kwargs))
    given = {_storage(value) for value in (*_tensors(inputs), *_tensors(tuple(options.values())))}
    out = func(*inputs, **options)
    returned = _tensors(out)
    new = all(
        tensor.is_meta and _storage(tensor) not in given and tensor.untyped_storage().nbytes() == tensor.nbytes
        for tensor in returned
    )
    return _describe(out) if returned and new else None


def _describe(value: Any) -> Any:
    """A hashable description: of tensors all but the values, of others the type and the value."""
    if isinstance(value, Tensor):
        return Tensor, value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, tuple | list):
        return list if isinstance(value, list) else tuple, *map(_describe, value)
    return type(value), value


def _empty(description: Any) -> Any:
    """A value of this description; tensors are left without values."""
    kind, *parts = description
    if kind is Tensor:
        shape, stride, dtype, device = parts
        return torch.empty_strided(shape, stride, dtype=dtype, device=device)
    if kind in (tuple, list):
        return kind(map(_empty, parts))
    return parts[0]


def _tensors(value: Any) -> list[Tensor]:
    """The tensors of an argument or of what an operator returns."""
    if isinstance(value, tuple | list):
        return [tensor for part in value for tensor in _tensors(part)]
    return [value] if isinstance(value, Tensor) else []
