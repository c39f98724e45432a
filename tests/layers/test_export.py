"""Layers as exported programs."""

from __future__ import annotations

import pytest
import torch

from deformvit.layers import (
    DeformableAttention,
    DeformableDetrAttention,
    NeighborhoodAttention,
    ReductionAttention,
    WindowAttention,
)

LAYERS = {
    "window": lambda: WindowAttention(16, 4, 4),
    "shifted window": lambda: WindowAttention(16, 4, 4, 2),
    "neighborhood": lambda: NeighborhoodAttention(16, 4, 3),
    "reduction": lambda: ReductionAttention(16, 4, 2),
    "deformable": lambda: DeformableAttention(16, 4, 2),
    "deformable, log_cpb": lambda: DeformableAttention(16, 4, 2, position="log_cpb"),
    "deformable, fixed": lambda: DeformableAttention(16, 4, 2, position="fixed"),
    "deformable, none": lambda: DeformableAttention(16, 4, 2, position="none"),
    "deformable_detr": lambda: DeformableDetrAttention(16, 4),
}


@pytest.mark.skipif(torch.__version__ < "2.7", reason="code cannot tell that it is exported before PyTorch 2.7")
@pytest.mark.parametrize("name", LAYERS)
def test_programs_can_be_lowered_without_decomposing_attention(name):
    """As torch.onnx.export does: ONNX has an attention of its own."""
    layer, x = LAYERS[name]().eval(), torch.randn(2, 16, 9, 12)
    table = torch.export.default_decompositions()
    table.pop(torch.ops.aten.scaled_dot_product_attention.default)
    program = torch.export.export(layer, (x,), strict=False).run_decompositions(table)
    torch.testing.assert_close(program.module()(x), layer(x))
