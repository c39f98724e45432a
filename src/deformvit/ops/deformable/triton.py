# mypy: disable-error-code="import-untyped, import-not-found"
"""Deformable attention in linear memory on a GPU: fused kernels in Triton, which is an optional dependency.

Forward keeps a running softmax over blocks of keys and saves its log-sum-exp; backward recomputes the attention weights
from it. The bias is never materialised: query (i, j) reads the table at ``first + (i, j) * step``, with one ``first``
for every key (:func:`deformvit.ops.deformable.bias.table_cells`), through which autograd reaches the positions.

Both passes are operators of PyTorch, ``deformvit::deform_attn_triton`` and ``..._backward``, which torch.compile and
torch.export keep as they are. The table's gradient is summed by atomic additions, in an order that differs from run to
run. With ``torch.use_deterministic_algorithms`` it is summed in integers, whose order does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deformvit.ops import grid
from deformvit.ops.deformable.bias import table_cells

try:
    from triton import next_power_of_2
    from triton.runtime.jit import JITFunction

    from deformvit.ops.deformable import triton_kernels as kernels
except ImportError as error:  # also a Triton that does not load
    _MISSING: str | None = str(error)
else:
    _MISSING = None

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_HEAD_DIM = 128
# TRITON_INTERPRET=1, in force while Triton is imported, makes kernels NumPy programs on the CPU.
INTERPRETED = _MISSING is None and not isinstance(kernels.forward, JITFunction)

Pass = Literal["forward", "backward_queries", "backward_keys"]


class Launch(NamedTuple):
    """Launch parameters of a kernel."""

    block_q: int
    """Queries in a block."""
    block_k: int
    """Keys in a block."""
    num_warps: int
    num_stages: int
    """Depth of the software pipeline that loads blocks from global memory."""


def launch(kernel: Pass, head_dim: int, dtype: torch.dtype) -> Launch:
    """Launch parameters for the larger of the head dimensions of k and v.

    Heuristics: the larger blocks for which the compiler keeps everything in registers on compute capability 8.0, where
    every logit takes four reads of the table with their addresses besides the features. How long they run is not
    measured yet; benchmarks/tune_triton.py does.
    """
    if dtype.itemsize > 2:  # products without matrix instructions
        return Launch(64 if head_dim <= 64 else 32, 32, 8, 1)
    if kernel == "backward_keys":
        return Launch(32, 32, 4, 2)
    return Launch(64, 32, 4, 2 if head_dim <= 32 else 1)


def can_run(
    q: Tensor, k: Tensor, v: Tensor, pos: Tensor, table: Tensor | None, query_hw: Sequence[int], dropout_p: float
) -> str | None:
    """Why these kernels cannot compute this, or None if they can. Shapes as in the public function."""
    if _MISSING is not None:
        return f"Triton cannot be imported ({_MISSING})"
    given = [q, k, v] if table is None else [q, k, v, pos, table]
    devices = sorted({str(t.device) for t in given})
    if len(devices) > 1:
        return f"all tensors must be on one device, got {' and '.join(devices)}"
    if q.device.type != "cuda" and not INTERPRETED:
        return f"tensors must be on a CUDA device, got {q.device}"
    dtypes = [_dtype(t) for t in (q, k, v)]
    if len(set(dtypes)) > 1 or dtypes[0] not in DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        return f"q, k and v must be all float16, all bfloat16 or all float32, got {names}"
    if INTERPRETED and dtypes[0] == torch.bfloat16:
        return "Triton's interpreter multiplies matrices of bfloat16 as if they were integers"
    for name, dim in (("q and k", q.shape[-1]), ("v", v.shape[-1])):
        if not 1 <= dim <= MAX_HEAD_DIM:
            return f"the head dimension of {name} must be 1 to {MAX_HEAD_DIM}, got {dim}"
    if len(query_hw) > 2:
        return f"queries must lie on a map or a sequence, got {len(query_hw)} axes, query_hw={tuple(query_hw)}"
    if dropout_p > 0:
        return f"dropout on the attention weights is not implemented, got dropout_p={dropout_p}"
    return None


def deform_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos: Tensor,
    table: Tensor | None,
    *,
    query_hw: Sequence[int],
    convention: grid.Convention,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """Equation 6; shapes as in the public function. First derivatives only.

    Raises:
        ValueError: the reason that :func:`can_run` gives.
    """
    reason = can_run(q, k, v, pos, table, query_hw, dropout_p)
    if reason is not None:
        raise ValueError(f"impl='triton' cannot run: {reason}")
    q, k, v = (t.to(_dtype(t)) for t in (q, k, v))
    if table is None:
        return _attend(q, k, v, None, None, 0.0, 0.0, 1, scale)[0]
    # Positions need float32: bfloat16 and float16 have 8 and 11 significant bits.
    cells = table_cells(pos.float(), table.float(), query_hw, convention)
    return _attend(q, k, v, cells.first, cells.table, *cells.step, cells.query_hw[1], scale)[0]


def _dtype(x: Tensor) -> torch.dtype:
    """The dtype that a tensor has under autocast, which leaves float64 as it is."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype in DTYPES:
        return torch.get_autocast_dtype(device)
    return x.dtype


class _Problem:
    """Arguments that the kernels of both passes share: features with contiguous rows, the padded table, all sizes."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, table: Tensor | None,
        step_row: float, step_col: float, width: int, scale: float,
    ) -> None:  # fmt: skip
        self.batch, self.heads, self.queries, self.dim = q.shape
        self.keys, self.dim_v = v.shape[2:]
        self.dtype = q.dtype
        self.features = [_contiguous_rows(t) for t in (q, k, v)]
        groups, size = 1, [1, 1]
        # Kernels without a bias read neither, but need a pointer.
        self.first, self.table = q, q
        if first is not None and table is not None:
            groups, size = first.shape[1], list(table.shape[1:])
            self.first = first.contiguous()
            self.table = F.pad(table, [kernels.PAD.value] * 4)
        self.sizes = [self.heads, self.heads // groups, self.queries, self.keys, width, *size]
        self.floats = [step_row, step_col, scale]
        self.constants = {
            "DIM": self.dim,
            "DIM_V": self.dim_v,
            "BLOCK_D": max(next_power_of_2(self.dim), 16),  # at least as wide as a matrix instruction
            "BLOCK_DV": max(next_power_of_2(self.dim_v), 16),
            "BIAS": table is not None,
        }

    def run(
        self, name: Pass, tensors: Sequence[Tensor], strided: Sequence[Tensor], plan: Launch | None, **constants: bool
    ) -> None:
        plan = plan or launch(name, max(self.dim, self.dim_v), self.dtype)
        tokens, block = (self.keys, plan.block_k) if name == "backward_keys" else (self.queries, plan.block_q)
        strides = [stride for t in strided for stride in t.stride()[:3]]
        with torch.cuda.device_of(tensors[0]):
            getattr(kernels, name)[(-(-tokens // block) * self.batch * self.heads,)](
                *tensors, *strides, *self.sizes, *self.floats, **self.constants, **constants,
                BLOCK_Q=plan.block_q, BLOCK_K=plan.block_k, num_warps=plan.num_warps, num_stages=plan.num_stages,
            )  # fmt: skip


def _contiguous_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def run_forward(
    q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, table: Tensor | None,
    step_row: float, step_col: float, width: int, scale: float, plan: Launch | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The forward kernel on q (B, M, Q, d), k (B, M, N, d), v (B, M, N, d'), and the cells of the table: first
    (B, G, N, 2) and table (M, T_h, T_w), float32, with the step and the width of the queries' map.

    Returns:
        out (B, M, Q, d'), and the base-2 log-sum-exp of the logits, (B, M, Q).
    """
    out = q.new_empty(*q.shape[:3], v.shape[-1])
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    if out.numel() == 0 or k.shape[2] == 0:
        return out.zero_(), lse.zero_()
    problem = _Problem(q, k, v, first, table, step_row, step_col, width, scale)
    problem.run("forward", [*problem.features, problem.first, problem.table, out, lse], problem.features, plan)
    return out, lse


def run_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, table: Tensor | None, out: Tensor, lse: Tensor,
    step_row: float, step_col: float, width: int, scale: float, needed: Sequence[bool],
    plan_queries: Launch | None = None, plan_keys: Launch | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The backward kernels, with forward's arguments and results; ``needed`` of q, k, v, first and table.

    Returns:
        Gradients of q, k, v, first and table, without elements where not needed.
    """
    needed = [need and t is not None for t, need in zip((q, k, v, first, table), needed, strict=True)]
    results = _empty_gradients(q, k, v, first, table, needed=needed)
    if out.numel() == 0 or k.shape[2] == 0:
        return _as_tuple([t.zero_() for t in results])
    problem = _Problem(q, k, v, first, table, step_row, step_col, width, scale)
    grad = _contiguous_rows(grad)
    delta = (grad.float() * out).sum(-1).contiguous()
    tensors = [*problem.features, problem.first, problem.table, grad, lse.contiguous(), delta]
    strided = [*problem.features, grad]
    if needed[0]:
        problem.run("backward_queries", [*tensors, results[0]], strided, plan_queries)
    if any(needed[1:]):
        fixed_point = needed[4] and torch.are_deterministic_algorithms_enabled()
        quanta = _quanta(grad, v, delta) if fixed_point else delta
        dfirst, dtable = results[3:]  # placeholders, unless needed
        if needed[3]:  # of every head, to be summed over those of a group
            dfirst = delta.new_empty(*k.shape[:3], 2)
        if needed[4]:
            dtable = torch.zeros_like(problem.table, dtype=torch.int64 if fixed_point else torch.float32)
        needs = dict(zip(("NEED_K", "NEED_V", "NEED_FIRST", "NEED_TABLE"), needed[1:], strict=True))
        targets = [*results[1:3], dfirst, dtable, quanta]
        problem.run("backward_keys", [*tensors, *targets], strided, plan_keys, **needs, FIXED_POINT=fixed_point)
        if needed[3]:
            results[3] = dfirst.unflatten(1, (problem.first.shape[1], -1)).sum(2)
        if needed[4]:
            inner = slice(kernels.PAD.value, -kernels.PAD.value)
            dtable = dtable[:, inner, inner]
            results[4] = (dtable / quanta.double()).float() if fixed_point else dtable.contiguous()
    return _as_tuple(results)


def _quanta(grad: Tensor, v: Tensor, delta: Tensor) -> Tensor:
    """How many integers make up 1 where the table's gradient is summed in integers: as many as cannot overflow 2^63.

    NaN where a gradient is not finite, so that the sum is NaN too. Computed without waiting for the device.

    A cell's sum is at most the sum of |P (dP - delta)| over images, queries and keys, with P summing to 1 over keys and
    dP a product of rows of the gradient and of v.
    """
    largest = [t.abs().amax().float() for t in (grad, v, delta)]
    bound = grad.shape[0] * grad.shape[2] * (v.shape[-1] * largest[0] * largest[1] + largest[2])
    # One bit is left for rounding. At most 2^126, which is finite in float32.
    quanta = torch.exp2((62 - torch.log2(bound)).floor().clamp(max=126.0))
    return torch.where(torch.isfinite(bound), quanta, math.nan)


def _empty_gradients(q: Tensor, *others: Tensor | None, needed: Sequence[bool]) -> list[Tensor]:
    """Uninitialised gradients. Those not needed have no elements, as operators cannot return None."""
    pairs = zip((q, *others), needed, strict=True)
    return [t.new_empty(t.shape) if t is not None and need else q.new_empty(0) for t, need in pairs]


def _as_tuple(x: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return x[0], x[1], x[2], x[3], x[4]


_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? first, Tensor? table"
_SIZES = "float step_row, float step_col, SymInt width, float scale"
_attend = torch.library.custom_op(
    "deformvit::deform_attn_triton", run_forward, mutates_args=(), schema=f"({_INPUTS}, {_SIZES}) -> (Tensor, Tensor)"
)
_attend_backward = torch.library.custom_op(
    "deformvit::deform_attn_triton_backward",
    run_backward,
    mutates_args=(),
    schema=f"(Tensor grad, {_INPUTS}, Tensor out, Tensor lse, {_SIZES}, bool[] needed)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@_attend.register_fake
def _(q: Tensor, _k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(*q.shape[:3], v.shape[-1]), q.new_empty(q.shape[:3], dtype=torch.float32)


@_attend_backward.register_fake
def _(_: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _as_tuple(_empty_gradients(*given[:5], needed=given[-1]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:5], *output)
    ctx.sizes = inputs[5:]
    ctx.mark_non_differentiable(output[1])


def _backward_rule(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    needed = list(ctx.needs_input_grad[:5])
    gradients = _attend_backward(grad, *ctx.saved_tensors, *ctx.sizes, needed)
    return *(t if need else None for t, need in zip(gradients, needed, strict=True)), None, None, None, None


_attend.register_autograd(_backward_rule, setup_context=_setup_context)
