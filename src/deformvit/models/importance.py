"""Importance of keys: attention propagated back through several deformable layers (Fig. 5 of the paper).

The paper gives no formula; this one is ours. The queries of the last layer have equal weights w that sum to 1, as the
classifier averages them, or one chosen query has all of the weight. From the last deformable layer to the first:

1. A key n of group g has the score ``s(g, n) = 1/M sum_m sum_q w(q) A(m, q, n)``, where m runs over the heads of the
   group and M is the number of all heads. The scores of a layer sum to 1.
2. Keys are sampled from the layer's map at their deformed points, so their scores are distributed over the map with the
   weights of bilinear sampling: ``u(p) = sum_n s(n) g(p_y, n_y) g(p_x, n_x)`` with g of equation 5.
3. Half of the weight passes through the layer and half through its residual connection: ``w' = (w + u) / 2``, the
   convention of attention rollout (Abnar and Zuidema, arXiv 2005.00928).
4. On an earlier stage's larger map, the weight of a pixel is divided among the pixels that it covers.

Local attention and MLPs between deformable layers are left out; they move information over short distances only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deformvit.models.trace import LayerRecord
from deformvit.ops import grid


@dataclass(frozen=True)
class Importance:
    """Scores of the keys of one layer, for one image."""

    layer: LayerRecord
    keys: Tensor
    """(G, N, 2) fractional (row, column) on the layer's map."""
    scores: Tensor
    """(G, N), sum 1."""


def key_importance(
    layers: Sequence[LayerRecord], image: int = 0, query: int | None = None, *, max_weights: int = 1 << 24
) -> list[Importance]:
    """Scores of the keys of every layer, in the order of ``layers``.

    Args:
        layers: deformable layers as recorded, first to last.
        image: index in the recorded batch.
        query: index, row by row, of the query of the last layer that has all of the weight; equal weights by default.
        max_weights: attention weights that are computed at a time, to bound memory.

    Raises:
        ValueError: no layers, a layer without deformed points, or no such query.
    """
    if not layers:
        raise ValueError("no deformable layers were recorded; the model has no layers with deformed points")
    height, width = layers[-1].feature_hw
    if query is None:
        weight = torch.full((height, width), 1 / (height * width))
    elif 0 <= query < height * width:
        weight = torch.zeros(height * width)
        weight[query] = 1
        weight = weight.reshape(height, width)
    else:
        raise ValueError(f"query must be from 0 to {height * width - 1} on a map of {(height, width)}, got {query}")
    importances = []
    for layer in reversed(layers):
        weight = _resize(weight, layer.feature_hw)
        scores, keys = _scores(layer, weight.flatten(), image, max_weights)
        importances.append(Importance(layer, keys, scores))
        sampled = grid.splat(scores.flatten(), keys.flatten(0, 1), layer.feature_hw)
        weight = (weight + sampled) / 2
        weight = weight / weight.sum()  # scores of keys outside the map, which sample zeros, are lost
    return importances[::-1]


def _scores(layer: LayerRecord, weight: Tensor, image: int, max_weights: int) -> tuple[Tensor, Tensor]:
    """(G, N) scores and (G, N, 2) map indices of a layer's keys, for (Q,) weights of its queries."""
    _, deformed = layer.points()
    groups, num_keys = deformed.shape[1], deformed[0, 0, ..., 0].numel()
    per_head = torch.zeros(layer.num_heads, num_keys)
    for queries in torch.where(weight > 0)[0].split(max(max_weights // (layer.num_heads * num_keys), 1)):
        attention = layer.attend(queries, image)
        per_head += torch.einsum("q,mqn->mn", weight[queries], attention.weights.cpu())
        keys = attention.keys
    scores = per_head.unflatten(0, (groups, -1)).sum(1) / layer.num_heads
    return scores, keys[:: layer.num_heads // groups, 0].cpu()


def _resize(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W) weights, sum 1, on a map of another size that covers the same image."""
    if weight.shape == size:
        return weight
    resized = F.interpolate(weight[None, None], size=size, mode="nearest-exact")[0, 0]
    return resized / resized.sum()
