"""The released code's outputs, gradients and points, in float64, from its own configurations and weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deformvit import DAT, convert_official, load_official, model_from_official, record_points
from deformvit.models import official

MICRO = ["dat_micro", "dat_micro_stride2_tanh", "dat_micro_nobias", "dat_micro_dwc_conv"]


def error(ours: torch.Tensor, released: np.ndarray) -> float:
    """Largest difference relative to the largest value."""
    return float(np.abs(ours.detach().numpy() - released).max() / np.abs(released).max())


@pytest.mark.parametrize("name", MICRO)
def test_micro_case(golden, name):
    case = golden(name)
    model = model_from_official(case.config).double().eval()
    load_official(model, {"model": case.state_dict()})
    image = case.image().requires_grad_()
    with record_points(model) as trace:
        logits = model(image)
    assert error(logits, case.outputs["logits"]) < 1e-9
    _, stages = model.forward_intermediates(image)
    for i, stage in enumerate(stages):
        assert error(stage, case.outputs[f"stage{i}"]) < 1e-5
    points = {layer.name: layer.deformed for layer in trace.layers}
    for key in case.outputs:
        if key.startswith("pos"):
            stage, block = key.removeprefix("pos").split(".")
            assert error(points[f"stages.{stage}.blocks.{block}.attn"], case.outputs[key]) < 1e-5

    (logits * case.cotangent(logits)).sum().backward()
    assert error(image.grad, case.outputs["grad_image"]) < 1e-5
    parameters = dict(model.named_parameters())
    weights = case.state_dict()
    for released, norm in case.json["grad_norms"].items():
        (ours,) = convert_official({released: weights[released]})
        assert parameters[ours].grad.norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-9), released


def test_dat_tiny(golden):
    case = golden("dat_tiny")
    model = model_from_official(case.config).double().eval()
    load_official(model, case.state_dict(buffers=False))
    with torch.inference_mode():
        final, stages = model.forward_intermediates(case.image())
        logits = model.forward_head(final)
    assert error(logits, case.outputs["logits"]) < 1e-5
    for i, stage in enumerate(stages):
        assert error(stage.mean((2, 3)), case.outputs[f"stage{i}_mean"]) < 1e-5


def test_datpp_convention_and_reduction(golden):
    """A second-generation case whose only difference from the first is where reference points and queries lie."""
    case = golden("datpp_micro_sra_window")
    config = {key: value for key, value in case.config.items() if key not in official.SECOND_GENERATION_KEYS}
    model = DAT(**official.official_args(config), convention="datpp").double().eval()
    load_official(model, case.state_dict())
    image = case.image()
    assert error(model(image), case.outputs["logits"]) < 1e-9
    other = DAT(**official.official_args(config)).double().eval()
    load_official(other, case.state_dict())
    assert error(other(image), case.outputs["logits"]) > 1e-3
