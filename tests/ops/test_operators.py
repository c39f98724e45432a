"""The compiled kernels as PyTorch's operators: what torch.compile, export, autocast and checkpointing make of them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from deformvit.layers import DeformableAttention, WindowAttention
from deformvit.ops import deform_attn
from deformvit.ops.deformable import cpu
from deformvit.ops.native import build, library

pytestmark = pytest.mark.skipif(library.MISSING is not None, reason=str(library.MISSING))
HW = (5, 9)


def tensors(dtype=torch.float32):
    q, k, v = (torch.randn(2, 4, n, 8).to(dtype).requires_grad_() for n in (45, 20, 20))
    pos = (torch.rand(2, 2, 20, 2) * 2.4 - 1.2).requires_grad_()
    return [q, k, v, pos, torch.randn(4, 9, 17, requires_grad=True)]


def gradients(function, given):
    out = function(*given)
    weights = torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(out.dtype)
    return [out, *torch.autograd.grad((out * weights).sum(), given)]


def attend(*given):
    return deform_attn(*given, query_hw=HW)


def test_pytorch_finds_no_fault_with_the_operator():
    q, k, v, pos, table = tensors()
    first = (pos.detach() * 5 + 8).requires_grad_()
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for given in ((q, k, v, first, table), (q, k, v, None, None)):
        torch.library.opcheck(cpu._forward, (*given, 9, 0.9, 0.8, 0.3), test_utils=checks)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_in_one_graph(dynamic):
    """The operator stays one node of the graph, for one size or for changing ones."""
    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    given = tensors()
    for found, expected in zip(gradients(compiled, given), gradients(attend, given), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_exported_programs_need_no_operator_of_ours():
    class Module(torch.nn.Module):
        def forward(self, *given):
            return attend(*given)

    given = tuple(t.detach() for t in tensors())
    program = torch.export.export(Module(), given)
    assert "deformvit" not in str(program.graph)
    torch.testing.assert_close(program.module()(*given), attend(*given), rtol=1e-4, atol=1e-5)


def test_checkpointed():
    given = tensors()
    expected = gradients(attend, given)
    found = gradients(lambda *t: checkpoint(attend, *t, use_reentrant=False), given)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_autocast():
    given = tensors()
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(attend, given)
    low = [t.detach().bfloat16().requires_grad_() for t in given[:3]] + given[3:]
    expected = gradients(attend, low)
    assert found[0].dtype == torch.bfloat16
    for a, b, t in zip(found[1:], expected[1:], given, strict=True):
        assert a.dtype == t.dtype
        torch.testing.assert_close(a, b.to(a.dtype))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # PyTorch's attention has no batching rule
def test_gradients_of_every_image():
    """torch.func's way to per-sample gradients, through the layer."""
    layer = torch.nn.Sequential(DeformableAttention(8, 2, 2), WindowAttention(8, 2, 4, 2))
    parameters, x = dict(layer.named_parameters()), torch.randn(3, 8, 6, 9)

    def loss(parameters, image):
        return torch.func.functional_call(layer, parameters, image[None]).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i in range(3):
        expected = torch.autograd.grad(loss(parameters, x[i]), list(parameters.values()))
        for name, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(found[name][i], gradient, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(lambda image: layer(image[None])[0])(x), layer(x))


def test_second_derivatives_are_refused_not_wrong():
    given = tensors()
    (gradient,) = torch.autograd.grad(attend(*given).square().sum(), given[0], create_graph=True)
    with pytest.raises(RuntimeError, match="deform_attn_cpu_backward"):
        gradient.sum().backward()


def test_frozen_layer_keeps_nothing():
    given = [t.detach() for t in tensors()]
    assert attend(*given).grad_fn is None


def test_instruction_sets_of_processors():
    assert build.instruction_sets("aarch64") == ["plain"]
    assert build.instruction_sets("x86_64") == ["avx512", "avx2", "plain"]
    assert set(library.INSTRUCTION_SETS) <= set(build.instruction_sets())
    assert "plain" in library.INSTRUCTION_SETS


def test_an_instruction_set_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no kernels for the instruction set 'sse'; expected one of .*plain"):
        library.instruction_set("sse")


def test_a_library_of_other_sources_is_not_loaded(monkeypatch):
    monkeypatch.setattr(build, "fingerprint", lambda: "another")
    loaded, reason = library._load()
    assert loaded is None
    assert "built from other sources than the installed ones" in reason


def test_a_missing_or_broken_library_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "LIBRARY", tmp_path / "kernels.so")
    loaded, reason = library._load()
    assert loaded is None
    assert "were not compiled when deformvit was installed" in reason
    (tmp_path / "kernels.so").write_text("no library")
    loaded, reason = library._load()
    assert loaded is None
    assert "cannot be loaded" in reason


@pytest.mark.parametrize(
    ("compiler", "expected"),
    [("/no/such/compiler", "the C++ compiler /no/such/compiler failed"), ("false", "the C++ compiler false failed")],
)
def test_a_compiler_that_fails_is_named(monkeypatch, tmp_path, compiler, expected):
    monkeypatch.setenv("CXX", compiler)
    assert expected in build.build(tmp_path / "kernels.so")
    assert not list(tmp_path.iterdir())


def test_no_compiler_is_said(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.build(tmp_path / "kernels.so") == build.NO_COMPILER


OWN_THREADS = """
import torch
from deformvit.ops import deform_attn
from deformvit.ops.native import library
q, k, v, pos = torch.randn(1, 2, 300, 8), torch.randn(1, 2, 90, 8), torch.randn(1, 2, 90, 8), torch.rand(1, 1, 90, 2)
given = dict(table=torch.randn(2, 5, 5), query_hw=(15, 20), impl="cpu")
torch.set_num_threads(4)
expected = deform_attn(q, k, v, pos, **given)
library.POOL = None
assert torch.equal(deform_attn(q, k, v, pos, **given), expected)
"""


def test_own_threads_where_pytorch_has_no_pool():
    subprocess.run([sys.executable, "-c", OWN_THREADS], check=True)


def test_memory_of_a_view_into_a_larger_tensor():
    """Strides, not shapes, say where tokens are: as a slice of a projection of all three."""
    given = tensors()
    q, k, v = (t.detach() for t in given[:3])
    packed = torch.randn(2, 20, 3, 4, 8)
    packed[:, :, 1], packed[:, :, 2] = k.transpose(1, 2), v.transpose(1, 2)
    views = packed.permute(2, 0, 3, 1, 4)
    expected = attend(q, k, v, *given[3:])
    torch.testing.assert_close(attend(q, views[1], views[2], *given[3:]), expected, rtol=0, atol=0)
