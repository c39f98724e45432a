# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def"
"""The kernels of :mod:`deformvit.ops.deformable.triton`. Importing this module needs Triton.

A program takes one block of queries (or of keys, for what is summed over queries) of one head of one image, and walks
through all blocks of the other. It recomputes the bias from the key's place in the table, so that nothing of queries x
keys is ever in memory. Tables arrive with ``PAD`` zeros on every side: with coordinates clamped to that border every
read is in bounds, what is read outside the table is zero, and so is its derivative, as in zero-padded ``grid_sample``.

Logits are kept in base 2 (times log2 e), whose exponential the hardware has. Sums and weights are float32; weights and
their gradients are rounded to the features' dtype only where they enter a product.
"""

from __future__ import annotations

import triton
import triton.language as tl

PAD = tl.constexpr(2)
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _features(base, stride, tokens, count, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """(block, BLOCK_D) features of the tokens, zero past the last token and the last dimension."""
    dims = tl.arange(0, BLOCK_D)
    # 64 bit: tokens times stride passes 2^31 in large maps whose heads are interleaved.
    pointers = base + tokens.to(tl.int64)[:, None] * stride + dims[None, :]
    return tl.load(pointers, mask=(tokens < count)[:, None] & (dims < DIM)[None, :], other=0.0)


@triton.jit
def _store_features(base, value, tokens, count, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """The inverse of ``_features`` for a contiguous (count, DIM)."""
    dims = tl.arange(0, BLOCK_D)
    pointers = base + tokens.to(tl.int64)[:, None] * DIM + dims[None, :]
    tl.store(pointers, value.to(base.dtype.element_ty), mask=(tokens < count)[:, None] & (dims < DIM)[None, :])


@triton.jit
def _key_cells(first, tokens, count, BIAS: tl.constexpr):
    """Row and column of the table that the map's first query reads, and what is added to the key's logits: 0, -inf
    past the last key, NaN if the position is, which must not become an index."""
    inside = tokens < count
    extra = tl.where(inside, 0.0, float("-inf"))
    row = extra
    col = extra
    if BIAS:
        row = tl.load(first + 2 * tokens, mask=inside, other=0.0)
        col = tl.load(first + 2 * tokens + 1, mask=inside, other=0.0)
        known = (row == row) & (col == col)
        extra = tl.where(known, extra, float("nan"))
        row = tl.where(known, row, 0.0)
        col = tl.where(known, col, 0.0)
    return row, col, extra


@triton.jit
def _read(table, row, col, table_h, table_w):
    """The table read bilinearly at (row, col), with the derivatives by row and col, the cell whose corner lies before
    (row, col), and the fractions by which (row, col) lie past it. ``table`` points at the padded table of one head."""
    pitch = table_w + 2 * PAD
    row = tl.minimum(tl.maximum(row, -PAD), table_h)
    col = tl.minimum(tl.maximum(col, -PAD), table_w)
    row_floor = tl.floor(row)
    col_floor = tl.floor(col)
    down = row - row_floor
    right = col - col_floor
    cell = (row_floor.to(tl.int32) + PAD) * pitch + col_floor.to(tl.int32) + PAD
    upper_left = tl.load(table + cell)
    upper = tl.load(table + cell + 1) - upper_left
    lower_left = tl.load(table + cell + pitch)
    lower = tl.load(table + cell + pitch + 1) - lower_left
    upper_value = upper_left + right * upper
    by_row = lower_left + right * lower - upper_value
    by_col = upper + down * (lower - upper)
    return upper_value + down * by_row, by_row, by_col, cell, down, right


@triton.jit
def _add(pointers, value, mask, quanta, FIXED_POINT: tl.constexpr):
    """Scatter a sum; in multiples of 1 / quanta, integers, whose sum does not depend on the order."""
    if FIXED_POINT:
        tl.atomic_add(pointers, (value * quanta).to(tl.int64), mask=mask, sem="relaxed")
    else:
        tl.atomic_add(pointers, value, mask=mask, sem="relaxed")


@triton.jit
def forward(
    q_ptr, k_ptr, v_ptr, first_ptr, table_ptr, out_ptr, lse_ptr,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token,
    heads, group_size, queries, keys, width, table_h, table_w, step_row, step_col, scale,
    DIM: tl.constexpr, DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BIAS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A block of queries: softmax with a running maximum (equation 6), and the base-2 log-sum-exp of its logits."""
    blocks = tl.cdiv(queries, BLOCK_Q)
    pair = (tl.program_id(0) // blocks).to(tl.int64)
    batch = pair // heads
    head = pair % heads
    tokens_q = (tl.program_id(0) % blocks) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    q = _features(q_ptr + batch * q_batch + head * q_head, q_token, tokens_q, queries, DIM, BLOCK_D)
    k_base = k_ptr + batch * k_batch + head * k_head
    v_base = v_ptr + batch * v_batch + head * v_head
    first = first_ptr + pair // group_size * keys * 2
    table = table_ptr + head * (table_h + 2 * PAD) * (table_w + 2 * PAD)
    row_q = (tokens_q // width).to(tl.float32) * step_row
    col_q = (tokens_q % width).to(tl.float32) * step_col

    highest = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    out = tl.zeros([BLOCK_Q, BLOCK_DV], tl.float32)
    for start in range(0, keys, BLOCK_K):
        tokens_k = start + tl.arange(0, BLOCK_K)
        k = _features(k_base, k_token, tokens_k, keys, DIM, BLOCK_D)
        row_k, col_k, extra = _key_cells(first, tokens_k, keys, BIAS)
        logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale + extra[None, :]
        if BIAS:
            row = row_k[None, :] + row_q[:, None]
            col = col_k[None, :] + col_q[:, None]
            bias, _, _, _, _, _ = _read(table, row, col, table_h, table_w)
            logits += bias
        logits *= LOG2E
        higher = tl.maximum(highest, tl.max(logits, 1))
        shrink = tl.exp2(highest - higher)
        weights = tl.exp2(logits - higher[:, None])
        total = total * shrink + tl.sum(weights, 1)
        v = _features(v_base, v_token, tokens_k, keys, DIM_V, BLOCK_DV)
        out = out * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        highest = higher
    out /= total[:, None]
    _store_features(out_ptr + pair * queries * DIM_V, out, tokens_q, queries, DIM_V, BLOCK_DV)
    tl.store(lse_ptr + pair * queries + tokens_q, highest + tl.log2(total), mask=tokens_q < queries)


@triton.jit
def backward_queries(
    q_ptr, k_ptr, v_ptr, first_ptr, table_ptr, grad_ptr, lse_ptr, delta_ptr, dq_ptr,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token, grad_batch, grad_head, grad_token,
    heads, group_size, queries, keys, width, table_h, table_w, step_row, step_col, scale,
    DIM: tl.constexpr, DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BIAS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A block of queries: its gradient, summed over keys. ``delta`` is the sum of out times its gradient."""
    blocks = tl.cdiv(queries, BLOCK_Q)
    pair = (tl.program_id(0) // blocks).to(tl.int64)
    batch = pair // heads
    head = pair % heads
    tokens_q = (tl.program_id(0) % blocks) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    inside = tokens_q < queries
    q = _features(q_ptr + batch * q_batch + head * q_head, q_token, tokens_q, queries, DIM, BLOCK_D)
    grad_base = grad_ptr + batch * grad_batch + head * grad_head
    grad = _features(grad_base, grad_token, tokens_q, queries, DIM_V, BLOCK_DV)
    lse = tl.load(lse_ptr + pair * queries + tokens_q, mask=inside, other=float("inf"))  # no weight past the last query
    delta = tl.load(delta_ptr + pair * queries + tokens_q, mask=inside, other=0.0)
    k_base = k_ptr + batch * k_batch + head * k_head
    v_base = v_ptr + batch * v_batch + head * v_head
    first = first_ptr + pair // group_size * keys * 2
    table = table_ptr + head * (table_h + 2 * PAD) * (table_w + 2 * PAD)
    row_q = (tokens_q // width).to(tl.float32) * step_row
    col_q = (tokens_q % width).to(tl.float32) * step_col

    dq = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for start in range(0, keys, BLOCK_K):
        tokens_k = start + tl.arange(0, BLOCK_K)
        k = _features(k_base, k_token, tokens_k, keys, DIM, BLOCK_D)
        v = _features(v_base, v_token, tokens_k, keys, DIM_V, BLOCK_DV)
        row_k, col_k, extra = _key_cells(first, tokens_k, keys, BIAS)
        logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale + extra[None, :]
        if BIAS:
            row = row_k[None, :] + row_q[:, None]
            col = col_k[None, :] + col_q[:, None]
            bias, _, _, _, _, _ = _read(table, row, col, table_h, table_w)
            logits += bias
        weights = tl.exp2(logits * LOG2E - lse[:, None])
        dlogits = weights * (tl.dot(grad, tl.trans(v), input_precision="ieee") - delta[:, None])
        dq += tl.dot(dlogits.to(k.dtype), k, input_precision="ieee")
    _store_features(dq_ptr + pair * queries * DIM, dq * scale, tokens_q, queries, DIM, BLOCK_D)


@triton.jit
def backward_keys(
    q_ptr, k_ptr, v_ptr, first_ptr, table_ptr, grad_ptr, lse_ptr, delta_ptr,
    dk_ptr, dv_ptr, dfirst_ptr, dtable_ptr, quanta_ptr,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token, grad_batch, grad_head, grad_token,
    heads, group_size, queries, keys, width, table_h, table_w, step_row, step_col, scale,
    DIM: tl.constexpr, DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BIAS: tl.constexpr, NEED_K: tl.constexpr, NEED_V: tl.constexpr, NEED_FIRST: tl.constexpr,
    NEED_TABLE: tl.constexpr, FIXED_POINT: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A block of keys: gradients of its keys, values and places in the table, summed over queries, and its share of
    the table's gradient. All matrices are transposed, (keys, queries): so they enter products as they are."""
    blocks = tl.cdiv(keys, BLOCK_K)
    pair = (tl.program_id(0) // blocks).to(tl.int64)
    batch = pair // heads
    head = pair % heads
    tokens_k = (tl.program_id(0) % blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
    k = _features(k_ptr + batch * k_batch + head * k_head, k_token, tokens_k, keys, DIM, BLOCK_D)
    v = _features(v_ptr + batch * v_batch + head * v_head, v_token, tokens_k, keys, DIM_V, BLOCK_DV)
    row_k, col_k, extra = _key_cells(first_ptr + pair // group_size * keys * 2, tokens_k, keys, BIAS)
    q_base = q_ptr + batch * q_batch + head * q_head
    grad_base = grad_ptr + batch * grad_batch + head * grad_head
    plane = head * (table_h + 2 * PAD) * (table_w + 2 * PAD)
    pitch = table_w + 2 * PAD
    quanta = 1.0
    if FIXED_POINT:
        quanta = tl.load(quanta_ptr)

    dk = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_K, BLOCK_DV], tl.float32)
    drow = tl.zeros([BLOCK_K], tl.float32)
    dcol = tl.zeros([BLOCK_K], tl.float32)
    for start in range(0, queries, BLOCK_Q):
        tokens_q = start + tl.arange(0, BLOCK_Q)
        inside = tokens_q < queries
        q = _features(q_base, q_token, tokens_q, queries, DIM, BLOCK_D)
        grad = _features(grad_base, grad_token, tokens_q, queries, DIM_V, BLOCK_DV)
        # No weight past the last query.
        lse = tl.load(lse_ptr + pair * queries + tokens_q, mask=inside, other=float("inf"))
        logits = tl.dot(k, tl.trans(q), input_precision="ieee") * scale + extra[:, None]
        if BIAS:
            row = row_k[:, None] + ((tokens_q // width).to(tl.float32) * step_row)[None, :]
            col = col_k[:, None] + ((tokens_q % width).to(tl.float32) * step_col)[None, :]
            bias, by_row, by_col, cell, down, right = _read(table_ptr + plane, row, col, table_h, table_w)
            logits += bias
        weights = tl.exp2(logits * LOG2E - lse[None, :])
        if NEED_V:
            dv += tl.dot(weights.to(grad.dtype), grad, input_precision="ieee")
        if NEED_K or (NEED_FIRST or NEED_TABLE):
            delta = tl.load(delta_ptr + pair * queries + tokens_q, mask=inside, other=0.0)
            dlogits = weights * (tl.dot(v, tl.trans(grad), input_precision="ieee") - delta[None, :])
            if NEED_K:
                dk += tl.dot(dlogits.to(q.dtype), q, input_precision="ieee")
            if NEED_FIRST:
                drow += tl.sum(dlogits * by_row, 1)
                dcol += tl.sum(dlogits * by_col, 1)
            if NEED_TABLE:
                touches = (row > -1) & (row < table_h) & (col > -1) & (col < table_w)
                touches &= inside[None, :] & (tokens_k < keys)[:, None]
                target = dtable_ptr + plane + cell
                lower = dlogits * down
                upper = dlogits - lower
                _add(target, upper - upper * right, touches, quanta, FIXED_POINT)
                _add(target + 1, upper * right, touches, quanta, FIXED_POINT)
                _add(target + pitch, lower - lower * right, touches, quanta, FIXED_POINT)
                _add(target + pitch + 1, lower * right, touches, quanta, FIXED_POINT)
    if NEED_K:
        _store_features(dk_ptr + pair * keys * DIM, dk * scale, tokens_k, keys, DIM, BLOCK_D)
    if NEED_V:
        _store_features(dv_ptr + pair * keys * DIM_V, dv, tokens_k, keys, DIM_V, BLOCK_DV)
    if NEED_FIRST:
        dfirst = dfirst_ptr + (pair * keys + tokens_k) * 2
        tl.store(dfirst, drow, mask=tokens_k < keys)
        tl.store(dfirst + 1, dcol, mask=tokens_k < keys)
