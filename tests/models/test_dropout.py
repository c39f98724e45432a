"""Dropout rates: where they act, in training only, and that they keep the mean."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deformvit import DAT

SMALL = {"dims": (8, 16, 32, 64), "num_heads": (2, 2, 4, 4), "groups": 1, "depths": (1, 1, 1, 1), "num_classes": 5}
ATTENTION = ["window", "shifted", "neighborhood", "deformable", "reduction", "deformable_detr"]
RATE = 0.4


def first_block(name: str, **rates: float) -> nn.Module:
    model = DAT(**SMALL, blocks=(name,) * 4, **rates)
    return model.stages[0].blocks[0]


def returns_ones(linear: nn.Linear) -> None:
    nn.init.zeros_(linear.weight)
    nn.init.ones_(linear.bias)


def assert_dropped(values: torch.Tensor, kept: float = 1.0) -> None:
    """Values are zero with probability RATE, and else ``kept / (1 - RATE)``."""
    zeros = values == 0
    assert zeros.float().mean().item() == pytest.approx(RATE, abs=0.03)
    torch.testing.assert_close(values[~zeros], torch.full_like(values[~zeros], kept / (1 - RATE)))


@pytest.mark.parametrize("name", ATTENTION)
def test_proj_drop_rate_acts_on_the_outputs_of_attention(name):
    attn = first_block(name, proj_drop_rate=RATE).attn
    returns_ones(attn.proj)
    x = torch.randn(4, 8, 20, 24)
    assert_dropped(attn.train()(x))
    assert (attn.eval()(x) == 1).all()


@pytest.mark.parametrize("name", ["window", "conv"])
@pytest.mark.parametrize("conv_mlp", ["none", "residual"])
def test_proj_drop_rate_acts_after_both_layers_of_mlps(name, conv_mlp):
    model = DAT(**SMALL, blocks=(name,) * 4, conv_mlp=conv_mlp, proj_drop_rate=RATE)
    mlp = model.stages[0].blocks[0].mlp
    returns_ones(mlp.fc1)
    returns_ones(mlp.fc2)
    if mlp.conv is not None:
        nn.init.zeros_(mlp.conv.weight)
        nn.init.zeros_(mlp.conv.bias)
    hidden = []
    mlp.fc2.register_forward_pre_hook(lambda _module, inputs: hidden.append(inputs[0].detach()))
    x, activation = torch.randn(4, 8, 20, 24), nn.functional.gelu(torch.tensor(1.0)).item()
    assert_dropped(mlp.train()(x))
    assert_dropped(hidden[0], activation)
    assert (mlp.eval()(x) == 1).all()
    torch.testing.assert_close(hidden[1], torch.full_like(hidden[1], activation))


@pytest.mark.parametrize("name", ATTENTION)
def test_attn_drop_rate_acts_on_attention_weights(name):
    """Outputs are linear in the weights, so that their mean over many draws is the output without dropout."""
    attn = first_block(name, attn_drop_rate=RATE).attn
    x = torch.randn(1, 8, 8, 8)
    with torch.no_grad():
        expected = attn.eval()(x)[0]
        outputs = attn.train()(x.expand(1500, -1, -1, -1))
    assert outputs.std(0).min() > 0
    standard_error = outputs.std(0) / len(outputs) ** 0.5
    assert ((outputs.mean(0) - expected).abs() / standard_error).max() < 6


def test_drop_rate_acts_before_the_classifier_only():
    model = DAT(**SMALL, blocks=("window",) * 4, drop_rate=RATE)
    x = torch.randn(64, 3, 32, 32)
    features = model.eval().forward_features(x)
    pooled, logits = (model.forward_head(features, pre_logits=before) for before in (True, False))
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    torch.testing.assert_close(logits, model.head.fc(pooled))
    model.train()
    torch.testing.assert_close(model.forward_features(x), features)
    dropped = model.forward_head(features, pre_logits=True)
    assert_dropped(dropped / pooled)
    returns_ones(model.head.fc)
    assert (model.forward_head(features) == 1).all()  # nothing is dropped after it


@pytest.mark.parametrize("rate", ["drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"])
@pytest.mark.parametrize("name", ["dat", "datpp"])
def test_rates_change_training_and_not_evaluation(rate, name):
    blocks = {"dat": ("window deformable",) * 4, "datpp": ("neighborhood deformable",) * 4}[name]
    args = {**SMALL, "depths": (2, 2, 2, 2), "blocks": blocks}
    plain, dropping = DAT(**args), DAT(**args, **{rate: RATE})
    dropping.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(dropping.eval()(x), plain.eval()(x))
    dropping.train()
    assert not torch.allclose(dropping(x), plain(x), rtol=1e-2, atol=1e-3)
