"""Every implementation of deformable attention against the reference: outputs and all gradients, at awkward sizes."""

from __future__ import annotations

import functools
import subprocess
import sys

import pytest
import torch

from deformvit.layers import DeformableAttention
from deformvit.ops import attention_impl, deform_attn, grid
from deformvit.ops.deformable import IMPLEMENTATIONS, KERNELS, choose, tiled
from deformvit.ops.native import build, library

# Triton has its own tests, in a process in which its interpreter is on.
OTHERS = ["tiled", *(f"cpu {name}" for name in build.instruction_sets())]
assert IMPLEMENTATIONS.keys() == {"reference", "tiled", "cpu", "triton"}
CASES = {  # batch, heads, groups, query map, keys, head dimension, table
    "one tile": (2, 4, 2, (3, 5), 7, 6, (5, 9)),
    "many tiles": (2, 4, 2, (13, 9), 31, 8, (25, 17)),
    "one group": (1, 3, 1, (7, 11), 20, 16, (4, 40)),
    "a group a head": (3, 4, 4, (4, 17), 9, 5, (3, 3)),
    "one query": (1, 2, 1, (1, 1), 12, 4, (5, 5)),
    "one column": (1, 2, 2, (9, 1), 12, 4, (17, 1)),
    "keys in several blocks": (2, 6, 3, (11, 23), 131, 32, (21, 45)),
    "a table far smaller than the map": (1, 2, 1, (9, 53), 70, 8, (3, 5)),
    "a table far larger than the map": (1, 2, 1, (4, 19), 70, 72, (60, 400)),
    "one key": (2, 2, 2, (6, 5), 1, 4, (11, 9)),
    "sequence": (2, 4, 2, (37,), 12, 8, (73,)),
    "volume": (1, 4, 2, (3, 4, 5), 11, 8, (5, 7, 9)),
}


@pytest.fixture
def impl(request):
    """Name of the implementation, whose kernels for one instruction set are selected."""
    name, _, instructions = request.param.partition(" ")
    if not instructions:
        yield name
        return
    if library.MISSING:
        pytest.skip(library.MISSING)
    if instructions not in library.INSTRUCTION_SETS:
        pytest.skip(f"this processor has no {instructions}")
    with library.instruction_set(instructions):
        yield name


def set_max_tile_weights(monkeypatch, count):
    monkeypatch.setitem(IMPLEMENTATIONS, "tiled", functools.partial(tiled.deform_attn, max_tile_weights=count))


@pytest.fixture
def small_tiles(monkeypatch):
    set_max_tile_weights(monkeypatch, 1000)


def inputs(case, dtype=torch.float64):
    batch, heads, groups, hw, keys, dim, table = CASES[case]
    queries = int(torch.tensor(hw).prod())
    tensors = [
        torch.randn(batch, heads, queries, dim), torch.randn(batch, heads, keys, dim),
        torch.randn(batch, heads, keys, dim + 1), torch.rand(batch, groups, keys, len(hw)) * 3 - 1.5,
        torch.randn(heads, *table),
    ]  # fmt: skip
    return [tensor.to(dtype).requires_grad_() for tensor in tensors], hw


@pytest.mark.parametrize("impl", OTHERS, indirect=True)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("convention", grid.CONVENTIONS)
def test_outputs_and_gradients(impl, case, convention, small_tiles):
    """Against the reference in float64; kernels, in float32, within its rounding: of sums, for the gradients."""
    tensors, hw = inputs(case)
    if impl == "cpu" and len(hw) == 3:
        pytest.skip("the kernels take maps and sequences only")
    expected = results("reference", tensors, hw, convention)
    if impl == "tiled":
        for ours, theirs in zip(results(impl, tensors, hw, convention), expected, strict=True):
            torch.testing.assert_close(ours, theirs)
        return
    single = [tensor.detach().float().requires_grad_() for tensor in tensors]
    for ours, theirs in zip(results(impl, single, hw, convention), expected, strict=True):
        assert ours.dtype == torch.float32
        assert ours.shape == theirs.shape
        assert (ours - theirs).norm() <= 3e-5 * theirs.norm() + 1e-5


def results(impl, tensors, hw, convention="v1"):
    out = deform_attn(*tensors, query_hw=hw, convention=convention, scale=0.3, impl=impl)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape).to(out.dtype)
    return [out, *torch.autograd.grad((out * weights).sum(), tensors)]


@pytest.mark.parametrize("impl", OTHERS, indirect=True)
def test_without_a_table(impl, small_tiles):
    (q, k, v, pos, _), hw = inputs("keys in several blocks")
    expected = deform_attn(q, k, v, pos, None, query_hw=hw, impl="reference")
    gradients = torch.autograd.grad(expected.square().sum(), (q, k, v))
    single = [tensor.detach().float().requires_grad_() for tensor in (q, k, v)]
    ours = deform_attn(*single, pos.detach().float(), None, query_hw=hw, impl=impl)
    torch.testing.assert_close(ours, expected.float(), rtol=1e-4, atol=1e-5)
    for found, theirs in zip(torch.autograd.grad(ours.square().sum(), single), gradients, strict=True):
        assert (found - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("impl", OTHERS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_is_no_worse_than_the_reference(impl, dtype, small_tiles):
    if impl == "cpu" and dtype == torch.float16:
        pytest.skip("the CPU kernels take float32 and bfloat16 only")
    tensors, hw = inputs("many tiles")
    exact = results("reference", tensors, hw)
    low = [t.detach().to(dtype if i < 3 else torch.float32).requires_grad_() for i, t in enumerate(tensors)]
    errors = {
        name: [(a.double() - b).norm() / b.norm() for a, b in zip(results(name, low, hw), exact, strict=True)]
        for name in ("reference", impl)
    }
    # In float32 both errors are the rounding of positions in table cells, where one is now luckier, now the other.
    luck = 1.5 if dtype == torch.float32 else 1.1
    for ours, theirs in zip(errors[impl], errors["reference"], strict=True):
        assert ours <= theirs * luck + torch.finfo(dtype).eps


@pytest.mark.parametrize("impl", OTHERS, indirect=True)
def test_layouts_and_leftovers(impl):
    """Channels apart, heads beside tokens, memory full of what was there before: the same numbers every time."""
    tensors, hw = inputs("keys in several blocks", torch.float32)
    expected = results(impl, tensors, hw)
    apart = [t.detach().transpose(-1, -2).contiguous().transpose(-1, -2).requires_grad_() for t in tensors]
    beside = [t.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for t in tensors[:3]]
    poison = [torch.full((1 << n,), float("nan")) for n in range(8, 20)]
    del poison
    for other in (apart, [*beside, *tensors[3:]], tensors):
        for ours, theirs in zip(results(impl, other, hw), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)
    for ours, theirs in zip(results(impl, tensors, hw), expected, strict=True):
        assert torch.equal(ours, theirs) or impl == "tiled"


@pytest.mark.parametrize("impl", OTHERS, indirect=True)
@pytest.mark.parametrize("threads", [1, 3, 16])
def test_threads_share_the_work(impl, threads):
    """Few heads and many threads: a head's keys are shared out in backward."""
    tensors, hw = inputs("keys in several blocks", torch.float32)
    tensors = [t[:1].detach().requires_grad_() for t in tensors[:4]] + tensors[4:]
    expected = results("reference", [t.double() for t in tensors], hw)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = results(impl, tensors, hw)
    finally:
        torch.set_num_threads(before)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= 3e-5 * theirs.norm()


@pytest.mark.parametrize("impl", OTHERS, indirect=True)
def test_no_images(impl):
    tensors, hw = inputs("one tile", torch.float32)
    tensors = [t[:0].detach().requires_grad_() for t in tensors[:4]] + tensors[4:]
    out = deform_attn(*tensors, query_hw=hw, impl=impl)
    assert out.shape == (0, 4, 15, 7)
    out.sum().backward()
    assert tensors[0].grad is not None
    assert tensors[4].grad is None or not tensors[4].grad.any()


@pytest.mark.parametrize("impl", OTHERS, indirect=True)
def test_only_what_needs_a_gradient_gets_one(impl, small_tiles):
    tensors, hw = inputs("many tiles", torch.float32)
    for i, tensor in enumerate(tensors):
        tensor.requires_grad_(i == 3)
    deform_attn(*tensors, query_hw=hw, impl=impl).sum().backward()
    assert [tensor.grad is not None for tensor in tensors] == [False, False, False, True, False]


@pytest.mark.parametrize("impl", ["reference", "tiled"])
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
    set_max_tile_weights(monkeypatch, 1 << 14)
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


def meta(queries, keys, device="meta", dtype=torch.float32):
    q, k = (torch.empty(1, 12, n, 32, device=device, dtype=dtype) for n in (queries, keys))
    return q, k, k, torch.zeros(1, 3, keys, 2, device=device), torch.zeros(12, 9, 9, device=device)


def test_automatic_choice_says_why(monkeypatch):
    counted = choose(*meta(4200, 4200), query_hw=(50, 84))
    assert (counted.impl, counted.reason[:18]) == ("reference", "on the meta device")
    monkeypatch.delitem(KERNELS, "cpu")
    large, small = meta(4200, 4200, "cpu"), meta(49, 49, "cpu")
    choice = choose(*large, query_hw=(50, 84))
    assert choice.impl == "tiled"
    assert choice.reason.startswith("there are no kernels for the device cpu; several tiles")
    assert "211680000 attention weights (1 x 12 x 4200 x 4200)" in choice.reason
    assert "one call of PyTorch's" in choose(*small, query_hw=(7, 7)).reason
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert choose(*large, query_hw=(50, 84)).impl == "reference"
    assert choose(*small, query_hw=(7, 7)).impl == "tiled"


@pytest.mark.skipif(library.MISSING is not None, reason=str(library.MISSING))
def test_automatic_choice_on_the_cpu():
    def reason(dtype=torch.float32, **options):
        choice = choose(*meta(6, 6, "cpu", dtype), query_hw=(2, 3), **options)
        assert choice.impl == ("cpu" if choice.reason.startswith("the kernels") else "tiled")
        return choice.reason

    assert reason().startswith("the kernels for cpu can run")
    dropout = "cpu cannot run: dropout on the attention weights is not implemented, got dropout_p=0.1; one tile"
    assert reason(dropout_p=0.1).startswith(dropout)
    dtypes = "cpu cannot run: q, k and v must all be float32 or all bfloat16, got torch.float64"
    assert reason(torch.float64).startswith(dtypes)


def test_without_compiled_kernels(monkeypatch):
    """As installed where there is no compiler: auto takes another implementation, the name raises and says why."""
    monkeypatch.setattr(library, "MISSING", "the CPU kernels were not compiled")
    tensors, hw = inputs("one tile", torch.float32)
    assert choose(*tensors, query_hw=hw).impl == "tiled"
    assert deform_attn(*tensors, query_hw=hw).shape == (2, 4, 15, 7)
    with pytest.raises(ValueError, match="impl='cpu' cannot run: the CPU kernels were not compiled"):
        deform_attn(*tensors, query_hw=hw, impl="cpu")


def test_what_is_asked_for_is_what_runs(monkeypatch):
    tensors, hw = inputs("many tiles", torch.float32)
    called = []
    for name, function in list(IMPLEMENTATIONS.items()):
        monkeypatch.setitem(
            IMPLEMENTATIONS, name, lambda *a, _f=function, _n=name, **kw: (called.append(_n), _f(*a, **kw))[1]
        )
    names = [name for name in IMPLEMENTATIONS if name != "triton" and (name != "cpu" or not library.MISSING)]
    deform_attn(*tensors, query_hw=hw)
    for name in names:
        deform_attn(*tensors, query_hw=hw, impl=name)
    assert called == ["tiled" if library.MISSING else "cpu", *names]


def test_layer_at_a_size_that_needs_tiles():
    layer = DeformableAttention(16, 4, 2).double()
    torch.nn.init.normal_(layer.bias_table)
    x = torch.randn(1, 16, 33, 41, dtype=torch.float64)
    assert tiled.MAX_TILE_WEIGHTS < 4 * (33 * 41) ** 2
    with attention_impl("reference"):
        expected = layer(x)
    torch.testing.assert_close(layer(x), expected)


def test_unknown_implementation_is_named():
    (q, k, v, pos, table), hw = inputs("one tile")
    with pytest.raises(ValueError, match="unknown impl 'cuda'; expected one of auto, reference, tiled, cpu, triton"):
        deform_attn(q, k, v, pos, table, query_hw=hw, impl="cuda")


@pytest.mark.parametrize("impl", [name for name in OTHERS if name != "tiled"], indirect=True)
def test_bfloat16_is_rounded_to_the_nearest_ties_to_even(impl):
    """Queries of zeros weigh two keys alike: outputs are the means of neighbours, right between two bfloat16."""
    low = (1 + torch.arange(64) / 128).bfloat16()
    v = torch.stack([low, low + 1 / 128]).reshape(1, 1, 2, 64)
    q, k, pos = torch.zeros(1, 1, 3, 64).bfloat16(), torch.randn(1, 1, 2, 64).bfloat16(), torch.zeros(1, 1, 2, 2)
    out = deform_attn(q, k, v, pos, None, query_hw=(1, 3), impl=impl)
    expected = v.float().mean(2).bfloat16()
    assert (expected != low).any()
    assert (expected == low).any()
    assert torch.equal(out, expected[:, :, None].expand_as(out))
