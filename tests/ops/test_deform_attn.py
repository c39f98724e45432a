"""The attention operation against the paper's formula written as loops, and its gradients against differences."""

from __future__ import annotations

import math

import pytest
import torch

from deformvit.ops import deform_attn, grid


def inputs(batch=2, heads=4, groups=2, hw=(3, 5), keys=7, dim=6, table=(5, 9), dtype=torch.float64):
    height, width = hw
    return {
        "q": torch.randn(batch, heads, height * width, dim, dtype=dtype),
        "k": torch.randn(batch, heads, keys, dim, dtype=dtype),
        "v": torch.randn(batch, heads, keys, dim, dtype=dtype),
        "pos": torch.rand(batch, groups, keys, 2, dtype=dtype) * 3 - 1.5,
        "table": torch.randn(heads, *table, dtype=dtype),
    }


def by_hand(q, k, v, pos, table, query_hw, convention):
    """Equation 6 with every weight and every bias computed on its own."""
    batch, heads, _, dim = q.shape
    groups, (height, width) = pos.shape[1], query_hw
    points = grid.query_points((height, width), convention, dtype=q.dtype).reshape(-1, 2)
    out = torch.zeros_like(q)
    for b in range(batch):
        for m in range(heads):
            g = m // (heads // groups)
            for i in range(height * width):
                logits = []
                for n in range(k.shape[2]):
                    t_y = ((points[i, 0] - pos[b, g, n, 0]) / 2 + 1) / 2 * (table.shape[1] - 1)
                    t_x = ((points[i, 1] - pos[b, g, n, 1]) / 2 + 1) / 2 * (table.shape[2] - 1)
                    bias = sum(
                        max(0.0, 1 - abs(t_y - y)) * max(0.0, 1 - abs(t_x - x)) * table[m, y, x]
                        for y in range(table.shape[1])
                        for x in range(table.shape[2])
                    )
                    logits.append(q[b, m, i] @ k[b, m, n] / math.sqrt(dim) + bias)
                out[b, m, i] = torch.stack(logits).softmax(0) @ v[b, m]
    return out


@pytest.mark.parametrize("convention", grid.CONVENTIONS)
def test_equals_the_formula(convention):
    given = inputs(batch=1, hw=(2, 3), keys=4, table=(3, 5))
    torch.testing.assert_close(
        deform_attn(**given, query_hw=(2, 3), convention=convention),
        by_hand(**given, query_hw=(2, 3), convention=convention),
    )


def test_gradients_against_finite_differences():
    given = inputs(batch=1, heads=2, groups=1, hw=(2, 3), keys=3, dim=2, table=(3, 5))
    for tensor in given.values():
        tensor.requires_grad_()
    torch.autograd.gradcheck(lambda *args: deform_attn(*args, query_hw=(2, 3)), tuple(given.values()))


def test_without_table_is_plain_attention():
    given = inputs() | {"table": None}
    expected = torch.nn.functional.scaled_dot_product_attention(given["q"], given["k"], given["v"])
    torch.testing.assert_close(deform_attn(**given, query_hw=(3, 5)), expected)


def test_order_of_keys_does_not_matter():
    given = inputs()
    order = torch.randperm(7)
    shuffled = given | {"k": given["k"][:, :, order], "v": given["v"][:, :, order], "pos": given["pos"][:, :, order]}
    torch.testing.assert_close(deform_attn(**given, query_hw=(3, 5)), deform_attn(**shuffled, query_hw=(3, 5)))


def test_heads_read_the_points_of_their_group():
    given = inputs(heads=4, groups=2)
    moved = given["pos"].clone()
    moved[:, 1] += 0.3
    before, after = deform_attn(**given, query_hw=(3, 5)), deform_attn(**(given | {"pos": moved}), query_hw=(3, 5))
    assert torch.equal(before[:, :2], after[:, :2])
    assert ((before[:, 2:] - after[:, 2:]).norm(dim=-1) > 1e-6).all()  # every query of both heads, in every image


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_hw": (5, 5)}, "15 queries but query_hw=.5, 5. has 25"),
        ({"k": torch.zeros(2, 4, 7, 5)}, "must agree"),
        ({"v": torch.zeros(2, 4, 6, 6)}, "must agree"),
        ({"pos": torch.zeros(2, 2, 7, 3)}, r"pos must be .* got \(2, 2, 7, 3\)"),
        ({"pos": torch.zeros(2, 3, 7, 2)}, "4 heads cannot be shared evenly by the 3 groups"),
        ({"table": torch.zeros(3, 5, 9)}, "M = 4 heads"),
        ({"q": torch.zeros(4, 15, 6)}, r"q must be \(B, M, tokens, d\)"),
        ({"v": torch.zeros(4, 15)}, r"v must be \(B, M, tokens, d\), got \(4, 15\)"),
        ({"table": torch.zeros(4, 0, 9)}, r"table must be .* got \(4, 0, 9\)"),
        (
            {"k": torch.zeros(2, 4, 0, 6), "v": torch.zeros(2, 4, 0, 6), "pos": torch.zeros(2, 2, 0, 2)},
            r"heads, queries, keys and channels must be at least 1; .* k \(2, 4, 0, 6\)",
        ),
        ({"q": torch.zeros(2, 4, 0, 6), "query_hw": (0, 5)}, "must be at least 1; got q .2, 4, 0, 6."),
    ],
)
def test_bad_shapes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        deform_attn(**{**inputs(dtype=torch.float32), "query_hw": (3, 5), **change})


@pytest.mark.parametrize("impl", ["auto", "reference", "tiled", "cpu", "triton"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_positions_that_are_not_finite_are_named(impl, value):
    given = inputs(dtype=torch.float32)
    given["pos"][1, 0, 4, 1] = value
    given["pos"][1, 1, 2] = value
    message = r"positions must be finite; 2 are not, the first of them pos\[1, 0, 4\] = \[.*, (nan|inf)\]"
    with pytest.raises(ValueError, match=message):
        deform_attn(**given, query_hw=(3, 5), impl=impl)


@pytest.mark.parametrize("impl", ["auto", "reference", "tiled", "cpu", "triton"])
def test_devices_are_named(impl):
    given = inputs(dtype=torch.float32)
    given["table"] = given["table"].to("meta")
    with pytest.raises(ValueError, match="one device, got q on cpu, .* table on meta"):
        deform_attn(**given, query_hw=(3, 5), impl=impl)
