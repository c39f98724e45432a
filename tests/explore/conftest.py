"""A model that wants 224 pixels, with weights that spread their attention."""

from __future__ import annotations

import pytest
import timm
import torch

from deformvit import ClassifierDescription, save_model

ARGS = {"dims": [16, 32, 64, 64], "num_heads": [1, 2, 4, 4], "groups": [1, 1, 2, 2], "depths": [2, 2, 2, 2]}


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """A classifier for 224 x 224 pixels with random weights, deformable in its last two stages."""
    torch.manual_seed(3)
    model = timm.create_model("dat_tiny", num_classes=6, **ARGS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.0)
            if name.endswith("bias_table"):
                parameter.normal_(std=0.5)
    path = tmp_path_factory.mktemp("explore") / "small.safetensors"
    classes = ["ant", "bee", "cow", "<b>dog</b>", "eel", "fox"]
    save_model(path, model, ClassifierDescription(name="dat_tiny", args=ARGS, classes=classes))
    return path
