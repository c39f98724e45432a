"""Attention propagated through several layers."""

from __future__ import annotations

import pytest
import torch

from deformvit import DeformableAttention, load_model, record
from deformvit.models.importance import key_importance
from deformvit.models.trace import LayerRecord
from deformvit.ops import grid


@pytest.fixture(scope="module")
def layers():
    model, _ = load_model("dat_nano.cifar10")
    torch.manual_seed(0)
    with torch.inference_mode(), record(model) as trace:
        model(torch.randn(2, 3, 40, 56))
    return trace.deformable


@pytest.mark.parametrize("query", [None, 3])
def test_scores_of_a_layer_sum_to_one(layers, query):
    importances = key_importance(layers, 1, query)
    assert [entry.layer for entry in importances] == layers
    for entry in importances:
        assert entry.scores.shape == entry.keys.shape[:2]
        assert entry.scores.sum().item() == pytest.approx(1, abs=1e-5)
        expected = grid.to_index(entry.layer.deformed[1].flatten(1, 2), entry.layer.feature_hw)
        torch.testing.assert_close(entry.keys, expected)


def test_one_layer_is_mean_attention(layers):
    """Written out for the last layer, with loops."""
    layer = layers[-1]
    (importance,) = key_importance([layer])
    height, width = layer.feature_hw
    weights = layer.attend(list(range(height * width))).weights
    heads_per_group = layer.num_heads // layer.deformed.shape[1]
    for group in range(importance.scores.shape[0]):
        for n in range(importance.scores.shape[1]):
            total = 0.0
            for m in range(group * heads_per_group, (group + 1) * heads_per_group):
                total += float(weights[m, :, n].mean())
            assert float(importance.scores[group, n]) == pytest.approx(total / layer.num_heads, rel=1e-4)


def test_of_one_query_the_last_layer_is_its_attention(layers):
    layer = layers[-1]
    importance = key_importance(layers, query=2)[-1]
    weights = layer.attend([2]).weights[:, 0].unflatten(0, (importance.scores.shape[0], -1)).sum(1) / layer.num_heads
    torch.testing.assert_close(importance.scores, weights)


def test_weight_follows_what_keys_sample():
    """All keys of the second layer lie at pixel (1, 4), those of the first at (3, 0)."""
    first, second = (DeformableAttention(4, 1, 1, bound="none", position="none") for _ in range(2))
    network = torch.nn.Sequential(first, second)
    size = (5, 7)
    for layer, place in ((first, (3.0, 0.0)), (second, (1.0, 4.0))):
        point = grid.from_index(torch.tensor(place), size)
        layer.points.register_forward_hook(
            lambda module, inputs, output, point=point: point.expand(1, 1, *size, 2).clone(), prepend=True
        )
    with torch.no_grad(), record(network) as trace:
        network(torch.randn(1, 4, *size))
    importances = key_importance(trace.deformable)
    for entry, place in zip(importances, ((3.0, 0.0), (1.0, 4.0)), strict=True):
        torch.testing.assert_close(entry.keys[0], torch.tensor(place).expand(35, 2), atol=1e-5, rtol=0)

    # Now the first layer attends by what it is asked: only the query at (1, 4) has a key that differs.
    chosen = key_importance(trace.deformable, query=0)
    weights = trace.deformable[0].attend(list(range(35))).weights[0]
    expected = 0.5 * weights[0] + 0.5 * weights[1 * 7 + 4]
    torch.testing.assert_close(chosen[0].scores[0], expected, atol=1e-6, rtol=1e-4)


def test_queries_in_chunks_give_the_same_scores(layers, monkeypatch):
    at_once = key_importance(layers)
    chunks = []
    attend = LayerRecord.attend
    monkeypatch.setattr(
        LayerRecord, "attend", lambda layer, queries, image: chunks.append(queries) or attend(layer, queries, image)
    )
    chunked = key_importance(layers, max_weights=1000)
    assert len(chunks) > len(layers)
    for one, other in zip(at_once, chunked, strict=True):
        torch.testing.assert_close(one.scores, other.scores)


def test_wrong_arguments_are_refused(layers):
    with pytest.raises(ValueError, match="no deformable layers"):
        key_importance([])
    with pytest.raises(ValueError, match=r"from 0 to 11 on a map of \(3, 4\), got 12"):
        key_importance(layers, query=12)
