"""Which keys matter: attention propagated back through several deformable layers (Fig. 5 of the paper).

The paper names no formula; this is ours. Queries of the last layer start with equal weights w that sum to 1, as the
classifier averages them, or all weight lies on a chosen query. From the last deformable layer to the first:

1. A key n of group g gets the score ``s(g, n) = 1/M sum_m sum_q w(q) A(m, q, n)``, over those of the M heads that
   belong to the group and see that key. All scores of a layer sum to 1.
2. Keys are read from the layer's map at their deformed points, so their scores are spread there as sampling reads:
   ``u(p) = sum_n s(n) g(p_y, n_y) g(p_x, n_x)`` with g of equation 5.
3. Past the layer goes as much as through it, as its block adds what it read to its result: ``w' = (w + u) / 2``, the
   convention of attention rollout (Abnar and Zuidema, arXiv 2005.00928).
4. On an earlier stage's larger map, a pixel's weight is divided among the pixels it covers.

Local attention and MLPs between deformable layers move nothing far and are passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deformvit.models.trace import LayerRecord
from deformvit.ops import grid

BUDGET = 1 << 24
"""Attention weights computed at a time."""


@dataclass(frozen=True)
class Importance:
    """The keys of one layer and image."""

    layer: LayerRecord
    keys: Tensor
    """(G, N, 2) fractional (row, column) on the layer's map."""
    scores: Tensor
    """(G, N) sums to 1."""


def key_importance(layers: Sequence[LayerRecord], image: int = 0, query: int | None = None) -> list[Importance]:
    """Scores of the keys of every layer, in the order of ``layers``.

    Args:
        layers: deformable layers as recorded, first to last.
        image: which image of the recorded batch.
        query: a query of the last layer, counted row by row, from which attention is followed; all alike by default.

    Raises:
        ValueError: no layers, a layer without deformed points, or no such query.
    """
    if not layers:
        raise ValueError("no deformable layers were recorded; the model has none that move points")
    height, width = layers[-1].feature_hw
    if query is None:
        weight = torch.full((height, width), 1 / (height * width))
    elif 0 <= query < height * width:
        weight = torch.zeros(height * width)
        weight[query] = 1
        weight = weight.reshape(height, width)
    else:
        raise ValueError(f"query must be from 0 to {height * width - 1} on a map of {(height, width)}, got {query}")
    found = []
    for layer in reversed(layers):
        weight = _to_map(weight, layer.feature_hw)
        scores, keys = _scores(layer, weight.flatten(), image)
        found.append(Importance(layer, keys, scores))
        through = grid.splat(scores.flatten(), keys.flatten(0, 1), layer.feature_hw)
        weight = (weight + through) / 2
        weight = weight / weight.sum()  # keys beyond the border read zeros
    return found[::-1]


def _scores(layer: LayerRecord, weight: Tensor, image: int) -> tuple[Tensor, Tensor]:
    """(G, N) scores and (G, N, 2) places of a layer's keys, for (Q,) weights of its queries."""
    groups = layer.points()[1].shape[1]
    total: Tensor | None = None
    number = layer.points()[1][0, 0, ..., 0].numel()
    step = max(BUDGET // (layer.num_heads * number), 1)
    for chosen in torch.where(weight > 0)[0].split(step):
        found = layer.attend(chosen, image)
        part = torch.einsum("q,mqn->mn", weight[chosen], found.weights.cpu())
        total = part if total is None else total + part
        keys = found.keys
    assert total is not None  # weights sum to 1
    scores = total.unflatten(0, (groups, -1)).sum(1) / layer.num_heads
    return scores, keys[:: layer.num_heads // groups, 0].cpu()


def _to_map(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """Weights of a map's pixels, divided among the pixels of a map of another size that covers the same image."""
    if weight.shape == size:
        return weight
    moved = F.interpolate(weight[None, None], size=size, mode="nearest-exact")[0, 0]
    return moved / moved.sum()
