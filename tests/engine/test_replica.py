"""What the trained model is wrapped in, in one process."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deformvit import UserError, recipes
from deformvit.engine.replica import Replica, fill_state


def replica(model=None, **run):
    config = recipes.demo()
    for name, value in run.items():
        setattr(config.run, name, value)
    model = model or nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    return Replica(model, model, config, torch.device("cpu"))


def test_average_takes_running_statistics_as_they_are():
    made = replica(ema=0.9)
    made.model.train()(torch.randn(8, 3, 6, 5) * 3 + 1)
    assert not torch.equal(made.average[1].running_mean, made.model[1].running_mean)
    made.update_average()
    assert torch.equal(made.average[1].running_mean, made.model[1].running_mean)
    assert made.eval_model() is made.average
    assert not any(p.requires_grad for p in made.average.parameters())


def test_creating_the_optimisers_state_changes_no_weight():
    made = replica()
    before = [p.detach().clone() for p in made.model.parameters()]
    optimizer = torch.optim.AdamW(made.model.parameters(), lr=0.1, weight_decay=0.5)
    fill_state(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, made.model.parameters(), strict=True))
    assert optimizer.param_groups[0]["lr"] == 0.1
    names = made.tensors(optimizer)
    assert {"model.0.weight", "model.1.running_mean", "optimizer.0.weight.exp_avg"} <= names.keys()


def test_models_that_cannot_recompute_are_refused():
    with pytest.raises(UserError, match="run.grad_checkpointing: Sequential cannot recompute"):
        replica(grad_checkpointing=True)


def test_channels_last_is_set():
    assert replica(channels_last=True).model[0].weight.is_contiguous(memory_format=torch.channels_last)
