"""Fused kernels against the reference in float64.

Without a GPU they run in Triton's interpreter, which has to be on when Triton is first imported: ``TestInterpreted`` is
collected only then, and otherwise one test runs it in a subprocess.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from deformvit.ops import grid
from deformvit.ops.deformable import reference
from deformvit.ops.deformable import triton as ours

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
CASES = {  # batch, heads, groups, query map, keys, head dimensions of k and v, table
    "many blocks": (2, 4, 2, (9, 17), 75, 24, 16, (17, 29)),
    "one group": (1, 3, 1, (7, 11), 20, 16, 5, (4, 40)),
    "a group a head": (3, 4, 4, (4, 17), 9, 5, 24, (3, 3)),
    "one query": (1, 2, 1, (1, 1), 40, 5, 16, (5, 5)),
    "one key": (2, 2, 2, (6, 5), 1, 16, 24, (11, 9)),
    "one number a head": (1, 2, 1, (3, 4), 6, 1, 1, (5, 6)),
    "one cell": (1, 2, 1, (3, 4), 6, 16, 16, (1, 1)),
    "sequence": (2, 4, 2, (37,), 12, 24, 16, (73,)),
    "widest keys": (1, 2, 1, (5, 14), 33, 128, 64, (9, 27)),
    "widest values": (1, 2, 2, (14, 5), 65, 64, 128, (27, 9)),
}


def inputs(case, dtype=torch.float32):
    """q, k, v, pos, table, leaves; every tenth key far outside the map."""
    batch, heads, groups, hw, keys, dim, dim_v, table = CASES[case]
    queries = int(torch.tensor(hw).prod())
    pos = torch.rand(batch, groups, keys, len(hw)) * 3 - 1.5
    pos[:, :, 9::10] *= 100
    tensors = [
        torch.randn(batch, heads, queries, dim), torch.randn(batch, heads, keys, dim),
        torch.randn(batch, heads, keys, dim_v), pos, torch.randn(heads, *table),
    ]  # fmt: skip
    return [t.to(dtype if i < 3 else torch.float32).requires_grad_() for i, t in enumerate(tensors)], hw


def doubled(tensors):
    return [None if t is None else t.detach().double().requires_grad_() for t in tensors]


def attend(impl, tensors, hw, convention="datpp"):
    q, k, v, pos, table = tensors
    return impl.deform_attn(q, k, v, pos, table, query_hw=hw, convention=convention, scale=0.3, dropout_p=0.0)


def results(impl, tensors, hw, convention="datpp"):
    """The output, and the gradients of what needs one."""
    out = attend(impl, tensors, hw, convention)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape).cos().to(out)
    wanted = [t for t in tensors if t is not None and t.requires_grad]
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), wanted)]


def errors(found, exact):
    """Of each tensor, relative to its norm, or to 1 where that is less: some gradients are zero."""
    return [
        ((a.double() - b).norm() / b.norm().clamp(min=1)).item() for a, b in zip(found, exact, strict=True)
    ]  # fmt: skip


def assert_agree(found, exact, tolerance=1e-5):
    assert [t.shape for t in found] == [t.shape for t in exact]
    assert all(error < tolerance for error in errors(found, exact)), errors(found, exact)  # NaN is not less


@pytest.mark.skipif(INTERPRET, reason="in the interpreter already")
def test_in_the_interpreter():
    pytest.importorskip("triton", reason="Triton is not installed")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"{__file__}::TestInterpreted"]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


@pytest.mark.skipif(INTERPRET, reason="the interpreter takes tensors of any device")
def test_refuses_tensors_elsewhere():
    pytest.importorskip("triton", reason="Triton is not installed")
    tensors, hw = inputs("one cell")
    with pytest.raises(ValueError, match="impl='triton' cannot run: tensors must be on a CUDA device, got cpu"):
        attend(ours, tensors, hw)


def test_says_that_triton_is_missing():
    code = """
import sys, torch
sys.modules["triton"] = None
from deformvit.ops.deformable import triton
q = torch.zeros(1, 1, 4, 8)
print(triton.can_run(q, q, q, torch.zeros(1, 1, 4, 2), None, (2, 2), 0.0))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Triton cannot be imported (")


@pytest.mark.skipif(INTERPRET, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("kernel", ["forward", "backward_queries", "backward_keys"])
def test_compiles_without_a_gpu(kernel, tmp_path, monkeypatch):
    """What the interpreter cannot tell: that the compiler takes the kernels, in bfloat16, and that blocks fit."""
    pytest.importorskip("triton", reason="Triton is not installed")
    import triton
    from triton.backends.compiler import GPUTarget

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function, plan = getattr(ours.kernels, kernel), ours.launch(kernel, 32, torch.bfloat16)
    constants = dict.fromkeys(("BIAS", "NEED_K", "NEED_V", "NEED_FIRST", "NEED_TABLE", "FIXED_POINT"), True)
    constants |= dict.fromkeys(("DIM", "DIM_V", "BLOCK_D", "BLOCK_DV"), 32)
    constants |= {"BLOCK_Q": plan.block_q, "BLOCK_K": plan.block_k}

    def kind(name):
        if name in constants:
            return "constexpr"
        if name.endswith("_ptr"):
            wide = name.startswith(("first", "table", "lse", "delta", "dfirst", "quanta"))
            return "*i64" if name.startswith("dtable") else "*fp32" if wide else "*bf16"
        return "fp32" if name in ("step_row", "step_col", "scale") else "i32"

    source = triton.compiler.ASTSource(
        function,
        {name: kind(name) for name in function.arg_names},
        constexprs={(i,): constants[name] for i, name in enumerate(function.arg_names) if name in constants},
    )
    options = {"num_warps": plan.num_warps, "num_stages": plan.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)
    assert "mma" in compiled.asm["ptx"]  # matrix instructions
    assert compiled.metadata.shared <= 99 * 1024  # what consumer GPUs have


class TestInterpreted:
    __test__ = INTERPRET

    @pytest.fixture
    def small_blocks(self, monkeypatch):
        monkeypatch.setattr(ours, "launch", lambda *_: ours.Launch(16, 32, 4, 1))

    def test_is_interpreted(self):
        assert ours.INTERPRETED

    @pytest.mark.parametrize("case", CASES)
    def test_outputs_and_gradients(self, case):
        tensors, hw = inputs(case)
        # Attention to one key is constant: its gradients are zero, and what is left is rounding.
        tolerance = 1e-4 if case == "one key" else 1e-5
        assert_agree(results(ours, tensors, hw), results(reference, doubled(tensors), hw), tolerance)

    @pytest.mark.parametrize("convention", grid.CONVENTIONS)
    def test_fewer_keys_than_queries(self, convention, small_blocks):
        """Keys that have moved a little from a grid at stride 2."""
        hw, keys_hw = (5, 11), (3, 6)
        points = grid.reference_points(keys_hw, convention).flatten(0, -2)
        pos = (points + 0.1 * torch.randn(2, 2, 18, 2)).requires_grad_()
        shapes = [(2, 4, 55, 8), (2, 4, 18, 8), (2, 4, 18, 8), None, (4, 9, 21)]
        tensors = [pos if shape is None else torch.randn(shape, requires_grad=True) for shape in shapes]
        found = results(ours, tensors, hw, convention)
        assert_agree(found, results(reference, doubled(tensors), hw, convention))

    @pytest.mark.parametrize("case", ["one group", "a group a head"])
    def test_blocks_of_any_size(self, case, monkeypatch):
        tensors, hw = inputs(case)
        exact = results(reference, doubled(tensors), hw)
        for block_q, block_k in ((16, 16), (32, 64), (128, 16)):
            monkeypatch.setattr(ours, "launch", lambda *_, q=block_q, k=block_k: ours.Launch(q, k, 4, 1))
            assert_agree(results(ours, tensors, hw), exact)

    def test_without_a_table(self):
        (*tensors, pos, _), hw = inputs("many blocks")
        given = [*tensors, pos.detach(), None]
        exact = results(reference, [*doubled(tensors), pos.detach().double(), None], hw)
        assert_agree(results(ours, given, hw), exact)

    def test_large_logits(self):
        """Exponentials that would overflow, also those of the queries that fill up a block."""
        tensors, hw = inputs("one group")
        with torch.no_grad():
            tensors[4] += 300
            tensors[3].clamp_(-0.5, 0.5)
        assert_agree(results(ours, tensors, hw), results(reference, doubled(tensors), hw), 1e-3)

    def test_nothing_to_attend_to(self):
        """Sums over no keys, and over no queries."""
        q, table = torch.randn(1, 2, 6, 4, requires_grad=True), torch.randn(2, 3, 5, requires_grad=True)
        empty = [torch.zeros(1, 2, 0, 4, requires_grad=True) for _ in range(2)]
        tensors = [q, *empty, torch.zeros(1, 1, 0, 2, requires_grad=True), table]
        assert_agree(results(ours, tensors, (2, 3)), results(reference, doubled(tensors), (2, 3)))
        tensors = [empty[0], q, q, torch.zeros(1, 1, 6, 2, requires_grad=True), table]
        assert attend(ours, tensors, (0, 3)).shape == (1, 2, 0, 4)

    def test_low_precision_is_no_worse_than_the_reference(self):
        tensors, hw = inputs("many blocks", torch.float16)
        exact = results(reference, doubled(tensors), hw)
        found, eager = (errors(results(impl, tensors, hw), exact) for impl in (ours, reference))
        eps = torch.finfo(torch.float16).eps
        assert all(a <= b * 1.1 + eps for a, b in zip(found, eager, strict=True)), (found, eager)

    def test_layouts(self, small_blocks):
        """Heads interleaved, transposed, expanded and cut from a larger tensor; the same of the output's gradient."""
        (q, k, v, pos, table), hw = inputs("one group")
        exact = results(reference, doubled([q, k, v, pos, table]), hw)
        wide = torch.cat([torch.randn(1, 3, 20, 3), v.detach(), torch.randn(1, 3, 20, 2)], -1)
        for q_, k_, v_ in (
            (q.transpose(1, 2).contiguous().transpose(1, 2), k.mT.contiguous().mT, wide[..., 3:8]),
            (q.mT.contiguous().mT, k.repeat(1, 1, 1, 2)[..., :16], v.mT.contiguous().mT),
        ):
            laid = [t.detach().requires_grad_() for t in (q_, k_, v_)]
            assert not any(t.is_contiguous() for t in laid)
            assert_agree(results(ours, [*laid, pos, table], hw), exact)

        tensors = [q, k, v, pos, table]
        weights = torch.randn(1, 77, 3, 5).cos()
        for permutation in ((0, 2, 1, 3), (0, 1, 3, 2), (3, 0, 2, 1)):
            gradients = []
            for impl, given in ((ours, tensors), (reference, doubled(tensors))):
                out = attend(impl, given, hw).permute(permutation).contiguous()
                gradients.append(torch.autograd.grad((out * weights.to(out).reshape(out.shape)).sum(), given))
            assert_agree(*gradients)
        expanded = [q[:1, :1].expand(2, 3, -1, -1), k.expand(2, -1, -1, -1), v.expand(2, -1, -1, -1)]
        given = [*expanded, pos.expand(2, -1, -1, -1), table]
        exact = attend(reference, [t.double() for t in given], hw)
        torch.testing.assert_close(attend(ours, given, hw).double(), exact, rtol=1e-4, atol=1e-5)

    def test_only_what_needs_a_gradient_is_computed(self, monkeypatch):
        tensors, hw = inputs("one group")
        everything = results(ours, tensors, hw)
        ran, run = [], ours._Problem.run

        def spy(self, name, *args, **constants):
            ran.append((name, [key for key, on in constants.items() if on]))
            return run(self, name, *args, **constants)

        monkeypatch.setattr(ours._Problem, "run", spy)
        only = [("backward_queries", [])]
        only += [("backward_keys", [name]) for name in ("NEED_K", "NEED_V", "NEED_FIRST", "NEED_TABLE")]
        for i, expected in enumerate(only):
            given = [t.detach().requires_grad_(j == i) for j, t in enumerate(tensors)]
            ran.clear()
            _, gradient = results(ours, given, hw)
            assert ran == [("forward", []), expected]
            torch.testing.assert_close(gradient, everything[i + 1], rtol=0, atol=0)

    def test_deterministic_gradient_of_the_table(self, monkeypatch):
        """Images in another order are summed in another order, which only sums of integers do not notice."""
        tensors, hw = inputs("a group a head")
        exact = results(reference, doubled(tensors), hw)[-1]
        same = {}
        for deterministic in (False, True):
            monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda on=deterministic: on)
            gradients = []
            for order in ([0, 1, 2], [0, 1, 2], [2, 0, 1]):
                images = [t.detach()[order] for t in tensors[:4]]
                table = tensors[4].detach().requires_grad_()
                out = attend(ours, [*images, table], hw)
                weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape).cos().to(out)
                gradients += torch.autograd.grad((out * weights[order]).sum(), table)
            assert_agree(gradients[:1], [exact])
            same[deterministic] = [torch.equal(gradients[0], other) for other in gradients[1:]]
        assert same == {False: [True, False], True: [True, True]}

    @pytest.mark.parametrize("size", [1e-28, 1.0, 1e30])
    def test_deterministic_gradient_does_not_overflow(self, size, monkeypatch):
        """The middle cell gets half of what the bound allows: half of the keys read it, the others nothing, and their
        values are opposite."""
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        q, k, v = torch.zeros(4, 1, 1, 16), torch.zeros(4, 1, 8, 16), torch.ones(4, 1, 8, 16)
        pos, table = torch.zeros(4, 1, 8, 2), torch.zeros(1, 3, 3, requires_grad=True)
        v[:, :, ::2], pos[:, :, ::2] = -1, 9
        out = attend(ours, [q, k, v, pos, table], (1, 1))
        (gradient,) = torch.autograd.grad(out, table, torch.full_like(out, size), retain_graph=True)
        expected = torch.zeros(1, 3, 3)
        expected[0, 1, 1] = 4 * 16 * size / 2
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=0)
        for bad in (torch.nan, torch.inf):
            (gradient,) = torch.autograd.grad(out, table, torch.full_like(out, bad), retain_graph=True)
            assert gradient.isnan().all()

    def test_positions_that_are_not_finite(self, small_blocks):
        tensors, hw = inputs("a group a head")
        bad = tensors[3].detach().clone()
        bad[0, 0, 3, 0], bad[0, 0, 7, 1] = torch.nan, torch.nan
        tensors[3] = bad.requires_grad_()
        found = results(ours, tensors, hw)
        good = doubled([t[1:] for t in tensors[:4]])
        assert_agree([found[0][1:]], [attend(reference, [*good, tensors[4].detach().double()], hw)])
        assert found[0][0, 0].isnan().all()  # the group's head, as for a key that is NaN
        assert found[0][0, 1:].isfinite().all()

        far = bad.detach().clone()
        far[..., 0], far[..., 1] = torch.inf, -1e30
        nothing = attend(ours, [*tensors[:3], far, None], hw)
        torch.testing.assert_close(attend(ours, [*tensors[:3], far, tensors[4]], hw), nothing, rtol=0, atol=0)

    def test_operators(self, small_blocks):
        (q, k, v, _, table), _ = inputs("one number a head")
        first = (torch.rand(1, 1, 6, 2) * 6 - 2).requires_grad_()
        sizes = 0.3, 1.7, 4, 0.3
        for cells in ((first, table), (None, None)):
            torch.library.opcheck(ours._attend, (q, k, v, *cells, *sizes))
            given = [None if t is None else t.detach() for t in (q, k, v, *cells)]
            out, lse = ours._attend(*given, *sizes)
            for needed in ([True] * 5, [True, False, False, False, False], [False, False, True, True, False]):
                args = (torch.randn_like(out), *given, out, lse, *sizes, needed)
                torch.library.opcheck(ours._attend_backward, args)

    def test_compiles_whole(self, small_blocks):
        tensors, hw = inputs("one group")
        exact = results(ours, tensors, hw)
        compiled = torch.compile(lambda *t: attend(ours, t, hw), fullgraph=True, backend="aot_eager")

        class Compiled:
            @staticmethod
            def deform_attn(*tensors, **_):
                return compiled(*tensors)

        assert_agree(results(Compiled, tensors, hw), exact, 1e-7)

    def test_exports(self, small_blocks):
        tensors, hw = inputs("one group")

        class Module(torch.nn.Module):
            def forward(self, *tensors):
                return attend(ours, tensors, hw)

        given = tuple(t.detach() for t in tensors)
        program = torch.export.export(Module(), given)
        assert "deform_attn_triton" in str(program.graph)
        torch.testing.assert_close(program.module()(*given), Module()(*given), rtol=0, atol=0)

    def test_checkpointing(self, small_blocks):
        tensors, hw = inputs("one group")

        class Checkpointed:
            @staticmethod
            def deform_attn(*tensors, **kwargs):
                return checkpoint(lambda *t: ours.deform_attn(*t, **kwargs), *tensors, use_reentrant=False)

        for again, once in zip(results(Checkpointed, tensors, hw), results(ours, tensors, hw), strict=True):
            torch.testing.assert_close(again, once, rtol=0, atol=0)

    def test_autocast(self, small_blocks):
        """Features in mixed precision, and a bias in low precision, as an autocast network hands them over."""
        (q, k, v, pos, table), hw = inputs("one group")
        tensors = [q, k.detach().half().requires_grad_(), v, pos, table]
        with torch.autocast("cpu", torch.float16):
            found = results(ours, tensors, hw)
        assert [t.dtype for t in found] == [torch.float16, torch.float32, torch.float16, *[torch.float32] * 3]
        assert_agree(found, results(reference, doubled(tensors), hw), 1e-2)

    def test_second_derivatives_are_refused_not_wrong(self, small_blocks):
        tensors, hw = inputs("one group")
        for i in range(5):
            out = attend(ours, tensors, hw)
            (gradient,) = torch.autograd.grad(out.square().sum(), tensors[i], create_graph=True)
            with pytest.raises(RuntimeError, match="deform_attn_triton_backward.* no autograd"):
                gradient.sum().backward()

    def test_says_why_not(self):
        (q, k, v, pos, table), hw = inputs("one group")

        def reason(q=q, k=k, v=v, pos=pos, table=table, query_hw=hw, dropout_p=0.0):
            return ours.can_run(q, k, v, pos, table, query_hw, dropout_p)

        assert reason() is None
        assert reason(table=None) is None
        assert reason(pos=pos.half(), table=table.bfloat16()) is None
        assert "all float32, got float32, float16, float32" in reason(k=k.half())
        assert "got float64, float64, float64" in reason(q.double(), k.double(), v.double())
        assert "interpreter" in reason(q.bfloat16(), k.bfloat16(), v.bfloat16())
        with torch.autocast("cpu", torch.float16):
            assert reason(k=k.half()) is None
            assert "got float16, float16, float64" in reason(v=v.double())
        wide = torch.zeros(1, 3, 20, 129)
        assert reason(v=wide) == "the head dimension of v must be 1 to 128, got 129"
        assert reason(k=wide, q=torch.zeros(1, 3, 77, 129)) == "the head dimension of q and k must be 1 to 128, got 129"
        assert "got 0" in reason(v=v[..., :0])
        assert "got 3 axes, query_hw=(7, 11, 1)" in reason(query_hw=(7, 11, 1))
        assert "dropout_p=0.1" in reason(dropout_p=0.1)
        assert "one device, got cpu and meta" in reason(pos=pos.to("meta"))
        with pytest.raises(ValueError, match="impl='triton' cannot run: .*got 129"):
            attend(ours, [q, k, wide, pos, table], hw)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRET, reason="this runs the compiled kernels")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_at_detection_size(dtype):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    height, width = 50, 84
    tokens = height * width
    tensors = [
        *(torch.randn(1, 4, tokens, 32, device="cuda").to(dtype) for _ in range(3)),
        torch.rand(1, 2, tokens, 2, device="cuda") * 2.4 - 1.2,
        torch.randn(4, 2 * height - 1, 2 * width - 1, device="cuda"),
    ]
    for t in tensors:
        t.requires_grad_()
    exact = results(reference, doubled(tensors), (height, width))
    found, eager = (errors(results(impl, tensors, (height, width)), exact) for impl in (ours, reference))
    slack = max(torch.finfo(dtype).eps, 1e-5)  # a float32 coordinate may lie on the other side of a cell's border
    assert all(a <= b * 1.1 + slack for a, b in zip(found, eager, strict=True)), (found, eager)
