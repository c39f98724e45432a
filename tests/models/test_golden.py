"""The released code's outputs, gradients and points, in float64, from its own configurations and weights."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from deformvit import convert_released, load_released, model_from_released, record

MICRO = [
    "dat_micro", "dat_micro_stride2_tanh", "dat_micro_nobias", "dat_micro_dwc_conv", "datpp_micro",
    "datpp_micro_sra_window",
]  # fmt: skip


def error(ours: torch.Tensor, released: np.ndarray) -> float:
    """Largest difference relative to the largest value."""
    return float(np.abs(ours.detach().numpy() - released).max() / np.abs(released).max())


@pytest.mark.parametrize("name", MICRO)
def test_micro_case(golden, name):
    case = golden(name)
    model = model_from_released(case.config).double().eval()
    load_released(model, {"model": case.state_dict()})
    image = case.image().requires_grad_()
    with record(model) as trace:
        logits = model(image)
    assert error(logits, case.outputs["logits"]) < 1e-9
    _, stages = model.forward_intermediates(image)
    for i, stage in enumerate(stages):
        assert error(stage, case.outputs[f"stage{i}"]) < 1e-5
    points = {layer.name: layer.deformed for layer in trace.deformable}
    for key in case.outputs:
        if key.startswith("pos"):
            stage, block = key.removeprefix("pos").split(".")
            assert error(points[f"stages.{stage}.blocks.{block}.attn"], case.outputs[key]) < 1e-5

    (logits * case.cotangent(logits)).sum().backward()
    assert error(image.grad, case.outputs["grad_image"]) < 1e-5
    parameters = dict(model.named_parameters())
    weights = case.state_dict()
    for released, norm in case.json["grad_norms"].items():
        (ours,) = convert_released({released: weights[released]})
        assert parameters[ours].grad.norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-9), released


@pytest.mark.parametrize("name", ["dat_tiny", "datpp_tiny"])
def test_released_size(golden, name):
    case = golden(name)
    model = model_from_released(case.config).double().eval()
    load_released(model, case.state_dict(buffers=False))
    with torch.inference_mode():
        final, stages = model.forward_intermediates(case.image())
        logits = model.forward_head(final)
    assert error(logits, case.outputs["logits"]) < 1e-5
    for i, stage in enumerate(stages):
        assert error(stage.mean((2, 3)), case.outputs[f"stage{i}_mean"]) < 1e-5


@pytest.mark.parametrize("name", ["dat_tiny", "datpp_tiny"])
def test_registered_model_is_the_released_one(golden, name):
    case = golden(name)
    model = timm.create_model(name).double().eval()
    load_released(model, case.state_dict())
    with torch.inference_mode():
        assert error(model(case.image()), case.outputs["logits"]) < 1e-5


def test_coordinates_of_the_first_generation_are_not_those_of_the_second(golden):
    case = golden("datpp_micro_sra_window")
    model = model_from_released(case.config, convention="v1").double().eval()
    load_released(model, case.state_dict())
    assert error(model(case.image()), case.outputs["logits"]) > 1e-3
