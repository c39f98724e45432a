"""What the page is told about an image and a model: plain data, the same for the server and for a file.

A *view* holds the picture's size, what was found (scales.py), and of every attention layer its map, heads, groups and
points. An *answer* holds what one query attends to. All places are (y, x) in pixels of what the network saw.
"""

from __future__ import annotations

import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from deformvit.explore.look import Look
from deformvit.explore.scales import Scales, found, verdict
from deformvit.inference import shrunk
from deformvit.layers import DeformableAttention
from deformvit.layers.attention_weights import QueryAttention
from deformvit.models.trace import LayerRecord, Trace

Json = dict[str, Any]

DISPLAY = 672
"""Pixels of the shorter side that a picture on the page has, where the image has as many."""


def view(looks: Scales) -> Json:
    """An image through a model, without pictures and attention."""
    seen = looks.shown
    height, width = seen.hw
    return {
        "height": height,
        "width": width,
        "found": found(looks),
        "verdict": verdict(looks),
        "range": _offset_range(seen),
        "changes": seen.overlay is not seen.picture,
        "start": first_layer(seen.trace),
        "layers": [described(layer, seen.hw) for layer in seen.trace.layers],
    }


def first_layer(trace: Trace) -> int | None:
    """Index of the layer that is shown first: the last deformable one of the stage before the last, which says most."""
    pool = [i for i, layer in enumerate(trace.layers) if layer.deformed is not None] or list(range(len(trace.layers)))
    if not pool:
        return None
    larger = [i for i in pool if trace.layers[i].feature_hw[0] > trace.layers[pool[-1]].feature_hw[0]]
    return (larger or pool)[-1]


def moved(seen: Look) -> list[list[list[list[float]]] | None]:
    """The deformed points of every layer, by group; None for layers without."""
    return [
        None if layer.deformed is None else _points(layer, layer.deformed[0], seen.hw) for layer in seen.trace.layers
    ]


def answer(layer: LayerRecord, query: int, hw: tuple[int, int]) -> Json:
    """What a query (counted row by row) attends to.

    ``keys`` are sets of places, ``set`` says which of them each head sees; a deformable layer's are its groups.
    """
    attended = layer.attend([query])
    return {
        "query": query,
        "at": _rounded(layer.index_pixels(_place(query, layer), hw)),
        "keys": key_places(attended, layer, hw),
        "set": layer.key_sets,
        "weights": [[float(f"{w:.3g}") for w in head] for head in attended.weights[:, 0].tolist()],
        "bias": None
        if attended.bias is None
        else [[round(b, 3) for b in head] for head in attended.bias[:, 0].tolist()],
    }


def picture(seen: Look) -> bytes:
    """JPEG of what the network saw, as sharp as the image allows, with what was found on it."""
    return encode(shrunk(seen.overlay, DISPLAY))


def encode(image: Image.Image) -> bytes:
    """RGB -> JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def key_places(found: QueryAttention, layer: LayerRecord, hw: tuple[int, int]) -> list[Any]:
    """The keys of the first query, for each set of :attr:`LayerRecord.key_sets`."""
    sets = layer.key_sets
    return [_rounded(layer.index_pixels(found.keys[sets.index(i), 0], hw)) for i in range(max(sets) + 1)]


def described(layer: LayerRecord, hw: tuple[int, int]) -> Json:
    """An attention layer, its map and points."""
    height, width = layer.feature_hw
    told: Json = {
        "name": layer.name,
        "label": layer.label,
        "kind": layer.kind,
        "heads": layer.num_heads,
        "map": [height, width],
        "first": _rounded(layer.index_pixels(torch.zeros(2), hw)),
        "step": _rounded(layer.index_pixels(torch.ones(2), hw) - layer.index_pixels(torch.zeros(2), hw)),
        "shift": round(layer.shift, 2),
        "reference": None,
        "deformed": None,
    }
    if layer.reference is not None and layer.deformed is not None:
        told["reference"] = _rounded(layer.pixels(layer.reference, hw).flatten(0, 1))
        told["deformed"] = _points(layer, layer.deformed[0], hw)
    return told


def _points(layer: LayerRecord, positions: Tensor, hw: tuple[int, int]) -> list[list[list[float]]]:
    return [_rounded(layer.pixels(group, hw).flatten(0, 1)) for group in positions]


def _rounded(values: Tensor) -> Any:
    return torch.round(values.float().cpu(), decimals=2).double().mul(100).round().div(100).tolist()


def _place(query: int, layer: LayerRecord) -> Tensor:
    return torch.tensor([query // layer.feature_hw[1], query % layer.feature_hw[1]], dtype=torch.float32)


def _offset_range(seen: Look) -> float | None:
    """s of the deformable layers, if they have one and share it."""
    layers = [layer.layer for layer in seen.trace.deformable]
    ranges = {
        layer.points.offset_range
        for layer in layers
        if isinstance(layer, DeformableAttention) and layer.points.bound == "range"
    }
    return ranges.pop() if len(ranges) == 1 else None
