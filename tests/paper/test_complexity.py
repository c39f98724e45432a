"""Counts of complexity: by hand, and equal to torch's counter and to real activations."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import deformvit  # noqa: F401 - registers the models
from deformvit.layers import ChannelNorm, NeighborhoodAttention
from deformvit.ops import attention_impl, grid
from deformvit.paper import complexity
from deformvit.paper.complexity import count_complexity


def test_counting_by_hand():
    """One linear layer, one convolution, one norm, one sampling."""

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
            self.norm = ChannelNorm(8)
            self.linear = torch.nn.Linear(8, 5)

        def forward(self, x):
            x = self.norm(self.conv(x))
            points = grid.reference_points((3, 4), device=x.device)[None]
            return self.linear(grid.sample(x, points).movedim(1, -1))

    cost = count_complexity(Network, (3, 6, 10))
    assert cost.parameters == 3 * 8 * 9 + 16 + 8 * 5 + 5
    assert cost.products == 60 * 3 * 9 * 8 + 12 * 8 * 5
    assert cost.norms == 5 * 60 * 8
    assert cost.sampling == 4 * 12 * 8
    assert cost.multiply_adds == cost.products + cost.norms + cost.sampling
    assert cost.activations is None


def test_neighbourhoods_are_counted_as_defined():
    cost = count_complexity(lambda: NeighborhoodAttention(8, 2, 7), (8, 20, 30))
    assert cost.products == 600 * (8 * 24 + 2 * 49 * 8 + 8 * 8)


BLOCKS = {
    "deformable": ("window", "window shifted", "window deformable", "deformable"),
    "detr": ("reduction", "reduction", "window deformable_detr", "deformable_detr"),
    "neighborhood": ("neighborhood",) * 4,
}


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("kind", BLOCKS)
def test_counts_are_those_of_a_plain_pass(kind, device):
    """Remembered shapes change nothing: torch's counter finds as much in a pass without them, on real values too."""

    def build():
        return timm.create_model(
            "dat_tiny", dims=(8, 16, 16, 32), num_heads=(2, 4, 4, 4), groups=(1, 2, 2, 2), depths=(2, 2, 4, 2),
            blocks=BLOCKS[kind], img_size=64, num_classes=3,
        )  # fmt: skip

    cost = count_complexity(build, (3, 64, 64), activations=True)
    with torch.device(device):
        model, x = build(), torch.zeros(1, 3, 64, 64)
    known = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers(), x)}
    kept = {}

    def pack(tensor):
        if tensor.untyped_storage()._cdata not in known:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    saving = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with saving, sdpa_kernel(SDPBackend.MATH), attention_impl("reference"):  # as counted
        model.train()(x)
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert cost.activations == pytest.approx(size, rel=0 if device == "meta" else 1e-3)  # the CPU keeps a little more
    if kind == "neighborhood":  # multiply-adds are counted as defined, not as computed
        return
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), attention_impl("reference"), counter:
        model(x)
    assert cost.products == counter.get_total_flops() // 2


def test_models_counted_before_change_nothing():
    """The same operators on other sizes, types and constants are not mixed up."""

    def count(size, bias):
        return count_complexity(
            lambda: torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, bias=bias), torch.nn.GELU(), torch.nn.Flatten()),
            (3, size, size), activations=True,
        )  # fmt: skip

    small, large, again = count(8, True), count(16, True), count(8, True)
    assert small == again
    assert (small.products, large.products) == (36 * 27 * 4, 196 * 27 * 4)
    assert (small.activations, large.activations) == (4 * 36 * 4, 4 * 196 * 4)
    assert count(8, False).parameters == small.parameters - 4


def test_constants_of_other_types_are_other_arguments():
    """2, 2.0 and True are equal to Python, but not to PyTorch."""

    class Network(torch.nn.Module):
        def forward(self, x):
            index = torch.arange(4, device=x.device)
            self.dtypes = [(index * 2).dtype, (index * 2.0).dtype, (index + 1).dtype, (index == True).dtype]  # noqa: E712
            return x

    network = Network()
    count_complexity(lambda: network, (3, 4, 4))
    assert network.dtypes == [torch.int64, torch.float32, torch.int64, torch.bool]


@pytest.mark.parametrize("view", [lambda x: x[1:], lambda x: torch.cat([x, x])[1:]], ids=["of an argument", "of more"])
def test_only_new_tensors_are_remembered(view):
    """Memory that a result shares, or holds beyond itself, would be counted wrongly."""
    x = torch.empty(4, 3, device="meta")
    assert complexity._output_spec(view, complexity._describe((x,)), complexity._describe(())) is None
