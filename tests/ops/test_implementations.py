"""Every implementation of deformable attention against the reference: outputs and all gradients, at awkward sizes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from deformvit.layers import DeformableAttention
from deformvit.ops import deform_attn, grid
from deformvit.ops.deform_attn import IMPLEMENTATIONS, choose, tiled

OTHERS = sorted(IMPLEMENTATIONS.keys() - {"reference"})
CASES = {  # batch, heads, groups, query map, keys, head dimension, table
    "one tile": (2, 4, 2, (3, 5), 7, 6, (5, 9)),
    "many tiles": (2, 4, 2, (13, 9), 31, 8, (25, 17)),
    "one group": (1, 3, 1, (7, 11), 20, 16, (4, 40)),
    "a group a head": (3, 4, 4, (4, 17), 9, 5, (3, 3)),
    "one query": (1, 2, 1, (1, 1), 12, 4, (5, 5)),
    "one key": (2, 2, 2, (6, 5), 1, 4, (11, 9)),
    "sequence": (2, 4, 2, (37,), 12, 8, (73,)),
    "volume": (1, 4, 2, (3, 4, 5), 11, 8, (5, 7, 9)),
}


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(tiled, "BUDGET", 1000)


def inputs(case, dtype=torch.float64):
    batch, heads, groups, hw, keys, dim, table = CASES[case]
    queries = int(torch.tensor(hw).prod())
    tensors = [
        torch.randn(batch, heads, queries, dim), torch.randn(batch, heads, keys, dim),
        torch.randn(batch, heads, keys, dim + 1), torch.rand(batch, groups, keys, len(hw)) * 3 - 1.5,
        torch.randn(heads, *table),
    ]  # fmt: skip
    return [tensor.to(dtype).requires_grad_() for tensor in tensors], hw


@pytest.mark.parametrize("impl", OTHERS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("convention", grid.CONVENTIONS)
def test_outputs_and_gradients(impl, case, convention, small_tiles):
    tensors, hw = inputs(case)
    results = []
    for name in ("reference", impl):
        out = deform_attn(*tensors, query_hw=hw, convention=convention, scale=0.3, impl=name)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
        results.append([out, *torch.autograd.grad((out * weights).sum(), tensors)])
    for expected, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("impl", OTHERS)
def test_without_a_table(impl, small_tiles):
    (q, k, v, pos, _), hw = inputs("many tiles")
    expected = deform_attn(q, k, v, pos, None, query_hw=hw, impl="reference")
    torch.testing.assert_close(deform_attn(q, k, v, pos, None, query_hw=hw, impl=impl), expected)


@pytest.mark.parametrize("impl", OTHERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_is_no_worse_than_the_reference(impl, dtype, small_tiles):
    (q, k, v, pos, table), hw = inputs("many tiles")
    exact = deform_attn(q, k, v, pos, table, query_hw=hw, impl="reference")
    low = [tensor.detach().to(dtype) for tensor in (q, k, v)]
    points, bias = pos.detach().float(), table.detach().float()
    errors = {
        name: (deform_attn(*low, points, bias, query_hw=hw, impl=name).double() - exact).norm() / exact.norm()
        for name in ("reference", impl)
    }
    assert errors[impl] <= errors["reference"] * 1.1 + torch.finfo(dtype).eps


@pytest.mark.parametrize("impl", OTHERS)
def test_only_what_needs_a_gradient_gets_one(impl, small_tiles):
    tensors, hw = inputs("many tiles")
    for i, tensor in enumerate(tensors):
        tensor.requires_grad_(i == 3)
    deform_attn(*tensors, query_hw=hw, impl=impl).sum().backward()
    assert [tensor.grad is not None for tensor in tensors] == [False, False, False, True, False]


@pytest.mark.parametrize("impl", ["reference", *OTHERS])
def test_dropout_keeps_the_mean(impl, small_tiles):
    (q, k, v, pos, table), hw = inputs("one group")
    expected = deform_attn(q, k, v, pos, table, query_hw=hw, impl=impl)
    torch.manual_seed(0)
    drawn = torch.stack([deform_attn(q, k, v, pos, table, query_hw=hw, dropout_p=0.4, impl=impl) for _ in range(300)])
    assert (drawn[0] - drawn[1]).abs().max() > 1e-2
    assert (drawn.mean(0) - expected).norm() / expected.norm() < 0.1


def test_dropout_is_the_same_in_the_recomputation(small_tiles):
    """The gradient of v is the transposed attention that forward used: linear in v, so differences are exact."""
    (q, k, v, pos, table), hw = inputs("many tiles")
    weights = torch.randn(*q.shape[:3], v.shape[-1], dtype=v.dtype)

    def loss(v):
        torch.manual_seed(3)
        out = deform_attn(q, k, v, pos, table, query_hw=hw, dropout_p=0.5, impl="tiled")
        return (out * weights).sum()

    direction = torch.randn_like(v)
    (gradient,) = torch.autograd.grad(loss(v), v)
    with torch.no_grad():
        moved = loss(v + direction)
    torch.testing.assert_close((gradient * direction).sum(), moved - loss(v).detach(), rtol=1e-6, atol=1e-6)


def test_autocast_recomputes_what_forward_computed(small_tiles, monkeypatch):
    """Features in float32 under autocast: attention is low precision, in the recomputation too."""
    (q, k, v, pos, table), hw = inputs("many tiles", torch.float32)
    seen, tile = [], tiled._tile

    def spy(*args):
        seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return tile(*args)

    monkeypatch.setattr(tiled, "_tile", spy)
    with torch.autocast("cpu", torch.float16):
        out = deform_attn(q, k, v, pos, table, query_hw=hw, impl="tiled")
        expected = deform_attn(q, k, v, pos, table, query_hw=hw, impl="reference")
    gradients = [torch.autograd.grad(o.float().square().sum(), (q, k, v, pos, table)) for o in (out, expected)]
    assert len(seen) > 4
    assert set(seen) == {(True, torch.float16)}
    for ours, theirs in zip(*gradients, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours - theirs).norm() / theirs.norm() < 0.01


def test_second_derivatives_are_refused_not_wrong(small_tiles):
    (q, k, v, pos, table), hw = inputs("many tiles")
    out = deform_attn(q, k, v, pos, table, query_hw=hw, impl="tiled")
    (gradient,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def saved_bytes(impl, side, monkeypatch):
    monkeypatch.setattr(tiled, "BUDGET", 1 << 14)
    queries = side * side
    q, k, v = (torch.randn(1, 2, queries, 4, requires_grad=True) for _ in range(3))
    pos, table = torch.rand(1, 1, queries, 2, requires_grad=True), torch.randn(2, 9, 9, requires_grad=True)
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        deform_attn(q, k, v, pos, table, query_hw=(side, side), impl=impl)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def test_memory_kept_for_backward_is_linear(monkeypatch):
    """Four times the tokens: four times the memory, where the reference takes sixteen times."""
    growth = {
        impl: saved_bytes(impl, 32, monkeypatch) / saved_bytes(impl, 16, monkeypatch) for impl in ("tiled", "reference")
    }
    assert growth["tiled"] < 5
    assert growth["reference"] > 12


PEAK = """
import resource, sys, torch
from deformvit.ops import deform_attn
height, width = map(int, sys.argv[1:])
q, k, v = (torch.randn(1, 4, height * width, 32, requires_grad=True) for _ in range(3))
pos, table = torch.rand(1, 2, height * width, 2, requires_grad=True), torch.randn(4, 9, 9, requires_grad=True)
deform_attn(q[:, :, :64], k, v, pos, table, query_hw=(8, 8)).sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
deform_attn(q, k, v, pos, table, query_hw=(height, width)).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_process_memory_is_linear():
    """The process's own peak, which fragmentation would drive up: four times the tokens, sixteen times the weights."""
    peaks = []
    for size in (("37", "49"), ("74", "98")):
        done = subprocess.run([sys.executable, "-c", PEAK, *size], check=True, capture_output=True, text=True)
        peaks.append(int(done.stdout) / 1024)  # MiB
    assert peaks[1] < 4.5 * max(peaks[0], 16), f"{peaks} MiB"  # the larger one's attention matrices alone have 803


def test_automatic_choice_says_why(monkeypatch):
    q, k = torch.empty(1, 12, 4200, 32, device="meta"), torch.empty(1, 12, 4200, 32, device="meta")
    assert choose(q, k).impl == "tiled"
    assert "211680000 attention weights (1 x 12 x 4200 x 4200) are several tiles" in choose(q, k).reason
    assert "one call of PyTorch's" in choose(q[:, :, :49], k[:, :, :49]).reason
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert choose(q, k).impl == "reference"
    assert choose(q[:, :, :49], k[:, :, :49]).impl == "tiled"


def test_what_is_asked_for_is_what_runs(monkeypatch):
    (q, k, v, pos, table), hw = inputs("many tiles")
    called = []
    for name, function in list(IMPLEMENTATIONS.items()):
        monkeypatch.setitem(
            IMPLEMENTATIONS, name, lambda *a, _f=function, _n=name, **kw: (called.append(_n), _f(*a, **kw))[1]
        )
    deform_attn(q, k, v, pos, table, query_hw=hw)
    for name in IMPLEMENTATIONS:
        deform_attn(q, k, v, pos, table, query_hw=hw, impl=name)
    assert called == ["tiled", *IMPLEMENTATIONS]


def test_layer_at_a_size_that_needs_tiles(monkeypatch):
    layer = DeformableAttention(16, 4, 2).double()
    torch.nn.init.normal_(layer.bias_table)
    x = torch.randn(2, 16, 13, 21, dtype=torch.float64)
    expected = layer(x)
    monkeypatch.setattr(tiled, "BUDGET", 5000)
    torch.testing.assert_close(layer(x), expected)


def test_unknown_implementation_is_named():
    (q, k, v, pos, table), hw = inputs("one tile")
    with pytest.raises(ValueError, match="unknown impl 'cuda'; expected one of auto, reference, tiled"):
        deform_attn(q, k, v, pos, table, query_hw=hw, impl="cuda")
