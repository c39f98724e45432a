"""Deformable attention on the CPU: compiled kernels, forward and backward, in memory linear in queries + keys.

The bias is computed where it is added, attention weights are never written to memory, and nothing is gathered:
native/deform_attn.cpp explains how. This file registers the kernels as operators of PyTorch, with gradients and shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deformvit.ops import grid
from deformvit.ops.deformable.bias import table_cells
from deformvit.ops.native import library

DTYPES = (torch.float32, torch.bfloat16)


def can_run(
    q: Tensor, k: Tensor, v: Tensor, pos: Tensor, table: Tensor | None, query_hw: Sequence[int], dropout_p: float
) -> str | None:
    """Why these kernels cannot compute this, or None if they can. Shapes as in the public function."""
    if q.device.type != "cpu":
        return f"tensors must be on the CPU, got {q.device}"
    if library.MISSING is not None:
        return library.MISSING
    if q.dtype not in DTYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        return f"q, k and v must all be float32 or all bfloat16, got {q.dtype}, {k.dtype} and {v.dtype}"
    if table is not None and (table.dtype == torch.float64 or pos.dtype == torch.float64):
        return f"positions and table must be at most float32, got {pos.dtype} and {table.dtype}"
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
    """Equation 6; shapes as in the public function.

    Raises:
        ValueError: the reason that :func:`can_run` gives.
    """
    if reason := can_run(q, k, v, pos, table, query_hw, dropout_p):
        raise ValueError(f"impl='cpu' cannot run: {reason}")
    if table is None:
        return _forward(q, k, v, None, None, q.shape[2], 0.0, 0.0, scale)[0]
    cells = table_cells(pos.float(), table.float(), query_hw, convention)
    return _forward(q, k, v, cells.first, cells.table, cells.query_hw[1], *cells.step, scale)[0]


@torch.library.custom_op("deformvit::deform_attn_cpu", mutates_args=(), device_types="cpu")
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    first: Tensor | None,
    table: Tensor | None,
    width: int,
    step_y: float,
    step_x: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Output (B, M, Q, d), and the base-2 log-sum-exp of the logits (B, M, Q), which backward needs."""
    out, lse = _empty_results(q, v)
    problem, inputs = _problem(q, k, v, first, table, width, step_y, step_x, scale)
    problem.out, problem.lse = library.Tokens.of(out), lse.data_ptr()
    library.call("forward", problem)
    del inputs
    return out, lse


def _empty_results(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return _empty_tokens(q, v.shape[-1]), q.new_empty(q.shape[:3], dtype=torch.float32)


def _empty_tokens(x: Tensor, dim: int) -> Tensor:
    """Uninitialised (B, M, tokens, dim), stored token by token as the projections around attention store features."""
    batch, heads, tokens, _ = x.shape
    return x.new_empty(batch, tokens, heads, dim).transpose(1, 2)


@_forward.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor]:
    return _empty_results(inputs[0], inputs[2])


def _problem(
    q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, table: Tensor | None, width: int,
    step_y: float, step_x: float, scale: float,
) -> tuple[library.Problem, list[Tensor]]:  # fmt: skip
    """The description in C, and the tensors it points into, which must live until the call returns."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    problem = library.Problem(
        batch=q.shape[0], heads=q.shape[1], groups=1, queries=q.shape[2], keys=k.shape[2], dim=q.shape[3],
        dim_v=v.shape[3], width=width, bfloat16=q.dtype == torch.bfloat16, scale=scale, step_y=step_y, step_x=step_x,
        q=library.Tokens.of(q), k=library.Tokens.of(k), v=library.Tokens.of(v),
    )  # fmt: skip
    inputs = [q, k, v]
    if first is not None and table is not None:
        first, table = first.contiguous(), table.contiguous()
        problem.groups, problem.table_h, problem.table_w = first.shape[1], table.shape[1], table.shape[2]
        problem.first, problem.table = first.data_ptr(), table.data_ptr()
        inputs += [first, table]
    return problem, inputs


@torch.library.custom_op("deformvit::deform_attn_cpu_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    first: Tensor | None,
    table: Tensor | None,
    width: int,
    step_y: float,
    step_x: float,
    scale: float,
    need_first: bool,
    need_table: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, first and table; those of the last two are empty where they are not needed."""
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    grad_q, grad_k, grad_v, grad_first, grad_table = _empty_gradients(q, k, v, first, table, need_first, need_table)
    problem, inputs = _problem(q, k, v, first, table, width, step_y, step_x, scale)
    problem.out, problem.lse, problem.grad_out = library.Tokens.of(out), lse.data_ptr(), library.Tokens.of(grad)
    problem.grad_q, problem.grad_k, problem.grad_v = map(library.Tokens.of, (grad_q, grad_k, grad_v))
    if need_first and first is not None:
        grad_first_of_heads = grad_first.new_empty(*q.shape[:2], k.shape[2], 2)
        problem.grad_first = grad_first_of_heads.data_ptr()
    if need_table:
        problem.grad_table = grad_table.data_ptr()
    library.call("backward", problem)
    del inputs
    if need_first and first is not None:
        torch.sum(grad_first_of_heads.unflatten(1, (first.shape[1], -1)), 2, out=grad_first)
    return grad_q, grad_k, grad_v, grad_first, grad_table


def _empty_gradients(
    q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, table: Tensor | None, need_first: bool, need_table: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_first = q.new_empty(first.shape if need_first and first is not None else 0, dtype=torch.float32)
    grad_table = q.new_empty(table.shape if need_table and table is not None else 0, dtype=torch.float32)
    grad_q, grad_k, grad_v = (_empty_tokens(x, x.shape[-1]) for x in (q, k, v))
    return grad_q, grad_k, grad_v, grad_first, grad_table


@_backward.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _empty_gradients(*inputs[3:8], *inputs[-2:])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, first, table, *ctx.scalars = inputs
    ctx.save_for_backward(q, k, v, first, table, *output)
    ctx.mark_non_differentiable(output[1])


def _backward_rule(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, first, table, out, lse = ctx.saved_tensors
    need = ctx.needs_input_grad
    *grads, grad_first, grad_table = _backward(
        grad, out, lse, q, k, v, first, table, *ctx.scalars, need[3], need[4]
    )  # fmt: skip
    return (
        *(g if needed else None for g, needed in zip(grads, need[:3], strict=True)),
        grad_first if need[3] else None,
        grad_table if need[4] else None,
        *(None,) * 4,
    )


_forward.register_autograd(_backward_rule, setup_context=_setup_context)
