"""The layer in other people's networks (docs/layer.md): it trains, at any size, and leaves the rest as it was."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F

import deformvit
from deformvit import DeformableAttention


def convnext() -> torch.nn.Module:
    model = timm.create_model("convnext_atto", num_classes=4, drop_path_rate=0.0)
    for block in model.stages[2].blocks[-2:]:
        block.conv_dw = DeformableAttention(block.conv_dw.in_channels, 4, 2)
    return model


def unet() -> torch.nn.Module:
    """The one of the page, so that what is tested is what is shown."""
    page = (Path(__file__).parents[2] / "docs" / "layer.md").read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class UNet" in block)
    names: dict = {"torch": torch, "deformvit": deformvit, "print": lambda *_: None}
    exec(code, names)
    return names["UNet"](3)


def attention(model):
    return [module for module in model.modules() if isinstance(module, DeformableAttention)]


@pytest.mark.parametrize(("build", "classes"), [(convnext, 4), (unet, 3)])
def test_trains_in_place(build, classes):
    torch.manual_seed(0)
    model = build().train()
    assert attention(model)
    images = torch.randn(8, 3, 64, 96)
    labels = torch.randint(classes, model(images).argmax(1).shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    before = [layer.points.offset_net[3].weight.detach().clone() for layer in attention(model)]
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0] if build is convnext else losses[-1] < losses[0]
    for layer, weight in zip(attention(model), before, strict=True):
        assert (layer.points.offset_net[3].weight - weight).abs().amax() > 1e-4  # offsets learn as well
    other = build()
    other.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 75, 110)
    torch.testing.assert_close(other.eval()(x), model.eval()(x))


def test_points_of_any_network_can_be_recorded():
    model = convnext().eval()
    with deformvit.record(model) as trace:
        model(torch.randn(1, 3, 96, 160))
    assert [layer.name for layer in trace.deformable] == ["stages.2.blocks.4.conv_dw", "stages.2.blocks.5.conv_dw"]
    assert trace.deformable[0].deformed.shape == (1, 2, 6, 10, 2)
