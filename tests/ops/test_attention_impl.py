"""The implementation of deformable attention chosen for a block of code."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch
import torch._dynamo.testing
from torch.utils.checkpoint import checkpoint

from deformvit.layers import DeformableAttention
from deformvit.ops import attention_impl, deform_attn
from deformvit.ops.deformable import IMPLEMENTATIONS
from deformvit.ops.native import library

AUTO = "tiled" if library.MISSING else "cpu"


@pytest.fixture
def ran(monkeypatch):
    """Names of the implementations that ran, in order."""
    names = []
    for name, function in list(IMPLEMENTATIONS.items()):

        def recorded(*arguments, _name=name, _function=function, **named):
            names.append(_name)
            return _function(*arguments, **named)

        monkeypatch.setitem(IMPLEMENTATIONS, name, recorded)
    return names


def attend(impl=None):
    q, k, pos = torch.randn(1, 2, 15, 4), torch.randn(1, 2, 6, 4), torch.rand(1, 1, 6, 2)
    return deform_attn(q, k, k, pos, torch.randn(2, 5, 9), query_hw=(3, 5), impl=impl)


def test_blocks_nest_and_restore(ran):
    attend()
    with attention_impl("reference"):
        attend()
        with attention_impl("tiled"):
            attend()
            with attention_impl("auto"):
                attend()
        attend()
    attend()
    assert ran == [AUTO, "reference", "tiled", AUTO, "reference", AUTO]


def test_an_error_restores_too(ran):
    with pytest.raises(KeyError), attention_impl("reference"):
        raise KeyError
    attend()
    assert ran == [AUTO]


def test_layers_inside_follow(ran):
    layer = DeformableAttention(8, 2)
    with attention_impl("reference"):
        layer(torch.randn(1, 8, 4, 5))
    layer(torch.randn(1, 8, 4, 5))
    assert ran == ["reference", AUTO]


def test_the_argument_takes_precedence(ran):
    with attention_impl("reference"):
        attend("tiled")
        attend("auto")
    assert ran == ["tiled", AUTO]


def test_unknown_names_are_told_before_the_block():
    with pytest.raises(ValueError, match="unknown impl 'flash'; expected one of auto, reference, tiled, cpu, triton"):
        attention_impl("flash")


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's kernels can run here")
def test_what_cannot_run_raises_instead_of_falling_back(ran):
    layer = DeformableAttention(8, 2)
    with attention_impl("triton"), pytest.raises(ValueError, match="impl='triton' cannot run: "):
        layer(torch.randn(1, 8, 4, 5))
    assert ran == ["triton"]
    with attention_impl("cpu"), pytest.raises(ValueError, match="impl='cpu' cannot run: "):
        layer.double()(torch.randn(1, 8, 4, 5).double())
    assert ran == ["triton", "cpu"]


def test_threads_do_not_see_each_others_blocks(ran):
    """Every thread opens its block before any of them computes."""
    opened, names = threading.Barrier(3), {}

    def work(impl):
        with attention_impl(impl):
            opened.wait(timeout=30)
            with lock:
                attend()
                names[impl] = ran[-1]

    lock = threading.Lock()
    threads = [threading.Thread(target=work, args=(impl,)) for impl in ("reference", "tiled")]
    for thread in threads:
        thread.start()
    opened.wait(timeout=30)
    for thread in threads:
        thread.join()
    attend()
    assert names == {"reference": "reference", "tiled": "tiled"}
    assert ran[-1] == AUTO


def test_asyncio_tasks_do_not_see_each_others_blocks(ran):
    async def work(impl):
        with attention_impl(impl):
            await asyncio.sleep(0)
            attend()
            return ran[-1]

    async def all_of_them():
        return await asyncio.gather(work("reference"), work("tiled"))

    assert asyncio.run(all_of_them()) == ["reference", "tiled"]


def test_as_a_decorator(ran):
    @attention_impl("reference")
    def compute():
        attend()

    compute()
    compute()
    assert ran == ["reference", "reference"]


IN_ONE_GRAPH = torch.__version__ >= "2.14"  # since when Dynamo reads context variables


def test_compiled_functions_follow(ran):
    torch._dynamo.reset()
    layer, x = DeformableAttention(8, 2), torch.randn(1, 8, 4, 5)
    expected = layer(x)
    ran.clear()
    compiled = torch.compile(layer, backend="eager", fullgraph=IN_ONE_GRAPH)
    for impl in ("auto", "reference", "auto", "reference"):
        with attention_impl(impl):
            torch.testing.assert_close(compiled(x), expected)
    compiled(x)
    assert ran == [AUTO, "reference", AUTO, "reference", AUTO]


@pytest.mark.skipif(not IN_ONE_GRAPH, reason="Dynamo reads context variables since PyTorch 2.14")
def test_a_function_is_compiled_once_for_every_implementation():
    torch._dynamo.reset()
    layer, x = DeformableAttention(8, 2), torch.randn(1, 8, 4, 5)
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    for impl in ("auto", "reference", "tiled", "reference", "auto"):
        with attention_impl(impl):
            compiled(x)
    compiled(x)
    assert counter.frame_count == 3


def test_compiled_code_in_another_thread_does_not_see_the_block(ran):
    torch._dynamo.reset()
    layer, x = DeformableAttention(8, 2), torch.randn(1, 8, 4, 5)
    compiled = torch.compile(layer, backend="eager")
    with attention_impl("reference"):
        thread = threading.Thread(target=compiled, args=(x,))
        thread.start()
        thread.join()
    assert set(ran) == {AUTO}


def test_a_block_inside_a_compiled_function(ran):
    torch._dynamo.reset()
    layer, x = DeformableAttention(8, 2), torch.randn(1, 8, 4, 5)

    def inside(x):
        with attention_impl("reference"):
            return layer(x)

    torch.compile(inside, backend="eager")(x)
    assert set(ran) == {"reference"}
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(inside, backend="eager", fullgraph=True)(x)


def test_checkpointing_takes_the_block_as_context(ran):
    layer, x = DeformableAttention(8, 2), torch.randn(1, 8, 4, 5, requires_grad=True)

    def blocks():
        return attention_impl("reference"), attention_impl("reference")

    checkpoint(layer, x, use_reentrant=False, context_fn=blocks).sum().backward()
    assert ran == ["reference", "reference"]


def test_exports_the_implementation_of_the_block():
    layer, x = DeformableAttention(8, 2).eval(), torch.randn(1, 8, 4, 5)
    with attention_impl("reference"):
        program = torch.export.export(layer, (x,), strict=False)
    assert "softmax" in str(program.graph)
    assert "softmax" not in str(torch.export.export(layer, (x,), strict=False).graph)
