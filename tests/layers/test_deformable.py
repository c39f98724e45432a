"""The layer: what the paper says it is, at sizes that hide nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from deformvit import DeformableAttention
from deformvit.layers import DeformedPoints
from deformvit.ops import grid

ODD = [(5, 9), (1, 7), (8, 3), (1, 1)]


def randomise_offsets(layer: DeformableAttention) -> DeformableAttention:
    """Offsets of a newly initialised layer are too small to show in tests."""
    for parameter in layer.points.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    if layer.bias_table is not None:
        torch.nn.init.normal_(layer.bias_table)
    return layer


def test_three_arguments_are_enough():
    layer = DeformableAttention(24, 4, 2)
    assert layer(torch.randn(2, 24, 10, 13)).shape == (2, 24, 10, 13)


@pytest.mark.parametrize("hw", ODD)
@pytest.mark.parametrize("stride", [1, 2, 3, 16])
@pytest.mark.parametrize("position", ["relative", "fixed", "dwconv", "none"])
def test_any_size_stride_and_position(hw, stride, position):
    layer = randomise_offsets(DeformableAttention(16, 4, 2, stride=stride, position=position, table_size=(4, 6)))
    x = torch.randn(2, 16, *hw, requires_grad=True)
    out = layer(x)
    assert out.shape == x.shape
    assert layer.points(layer.q(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)).shape == (
        2, 2, -(-hw[0] // stride), -(-hw[1] // stride), 2,
    )  # fmt: skip
    out.square().sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("convention", grid.CONVENTIONS)
@pytest.mark.parametrize("bound", ["range", "tanh", "clamp", "none"])
def test_gradients_against_finite_differences(convention, bound):
    layer = randomise_offsets(
        DeformableAttention(4, 2, 2, offset_kernel=3, table_size=(3, 4), convention=convention, bound=bound)
    ).double()
    x = torch.randn(1, 4, 3, 4, dtype=torch.float64, requires_grad=True)
    parameters = list(layer.parameters())
    torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *parameters), atol=1e-5, fast_mode=True)


def test_gradients_reach_every_parameter_and_both_offset_axes():
    layer = DeformableAttention(16, 4, 2)
    layer(torch.randn(2, 16, 5, 9)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        if name != "k.bias":  # adds the same to all logits of a query: softmax does not see it
            assert parameter.grad.abs().max() > 0, name
    assert layer.points.offset_net[3].weight.grad.abs().amin(dim=1).min() > 0


def test_identity_convention_without_offsets_is_plain_attention():
    layer = DeformableAttention(16, 4, 2, position="none", offsets=False, convention="aligned").double()
    x = torch.randn(2, 16, 5, 9, dtype=torch.float64)
    tokens = x.flatten(2).transpose(1, 2)
    q, k, v = (f(tokens).unflatten(-1, (4, -1)).transpose(1, 2) for f in (layer.q, layer.k, layer.v))
    expected = layer.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x).flatten(2).transpose(1, 2), expected)


def test_zero_range_and_zero_weights_equal_no_offsets():
    torch.manual_seed(1)
    plain = DeformableAttention(16, 4, 2, offsets=False)
    assert DeformableAttention(16, 4, 2, offset_range=0).points.offset_net is None
    zero = DeformableAttention(16, 4, 2)
    torch.nn.init.zeros_(zero.points.offset_net[3].weight)
    zero.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(2, 16, 5, 9)
    torch.testing.assert_close(zero(x), plain(x))


def test_offsets_are_at_most_s_units():
    points = DeformedPoints(8, 2, stride=2, offset_range=3.0)
    for parameter in points.parameters():
        torch.nn.init.normal_(parameter, std=30)
    pos = points(torch.randn(2, 8, 6, 10))
    move = (pos - points.reference(6, 10)).abs()
    limit = 3.0 * torch.tensor([1 / 3, 1 / 5])
    assert (move <= limit + 1e-6).all()
    torch.testing.assert_close(move.amax(dim=(0, 1, 2, 3)), limit, atol=1e-3, rtol=0)


def test_undeformed_points_are_clamped_too():
    """The last reference point of DAT++ lies half a cell beyond the map."""
    q = torch.randn(1, 8, 4, 5)
    points = DeformedPoints(8, 2, offsets=False, convention="datpp")(q)
    assert points[..., -1, -1, :].tolist() == [[pytest.approx([4 / 3, 5 / 4])] * 2]
    clamped = DeformedPoints(8, 2, offsets=False, convention="datpp", bound="clamp")(q)
    torch.testing.assert_close(clamped, points.clamp(-1, 1))


@pytest.mark.parametrize("bound", ["tanh", "clamp"])
def test_bounded_positions_stay_on_the_map(bound):
    points = DeformedPoints(8, 2, bound=bound)
    for parameter in points.parameters():
        torch.nn.init.normal_(parameter, std=30)
    assert points(torch.randn(2, 8, 6, 10)).abs().max() <= 1


def test_image_of_a_batch_is_independent_of_the_others():
    layer = randomise_offsets(DeformableAttention(16, 4, 2)).double().eval()
    x = torch.randn(3, 16, 5, 9, dtype=torch.float64)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(layer(x)[order], layer(x[order]))
    torch.testing.assert_close(layer(x)[1:2], layer(x[1:2]))


def test_transposed_network_on_the_transposed_map():
    """y and x are treated alike: swapping them in the map, the kernels, the offsets and the table swaps the output."""
    layer = randomise_offsets(DeformableAttention(16, 4, 2, table_size=(4, 6))).double()
    other = DeformableAttention(16, 4, 2, table_size=(6, 4)).double()
    weights = dict(layer.state_dict())
    for name in ("points.offset_net.0.weight", "bias_table"):
        weights[name] = weights[name].transpose(-1, -2)
    weights["points.offset_net.3.weight"] = weights["points.offset_net.3.weight"].flip(0)
    other.load_state_dict(weights)
    x = torch.randn(1, 16, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x), other(x.transpose(2, 3)).transpose(2, 3))
    weights["points.offset_net.3.weight"] = weights["points.offset_net.3.weight"].flip(0)  # (x, y) for (y, x)
    other.load_state_dict(weights)
    assert (layer(x) - other(x.transpose(2, 3)).transpose(2, 3)).abs().max() > 1e-2


def test_memory_format_does_not_matter():
    layer = randomise_offsets(DeformableAttention(16, 4, 2)).double()
    x = torch.randn(2, 16, 5, 9, dtype=torch.float64)
    torch.testing.assert_close(layer(x), layer(x.contiguous(memory_format=torch.channels_last)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_error_is_of_the_order_of_rounding(dtype):
    layer = randomise_offsets(DeformableAttention(32, 4, 2))
    x = torch.randn(2, 32, 7, 5)
    with torch.autocast("cpu", dtype):
        low = layer(x)
    exact = layer.double()(x.double())
    error = (low.double() - exact).norm() / exact.norm()
    assert error < 16 * torch.finfo(dtype).eps


def test_whole_layer_in_bfloat16():
    layer = randomise_offsets(DeformableAttention(32, 4, 2))
    x = torch.randn(2, 32, 7, 5)
    expected = layer(x)
    low = layer.bfloat16()(x.bfloat16())
    assert low.dtype == torch.bfloat16
    assert (low.float() - expected).norm() / expected.norm() < 0.1


def test_table_of_another_size_is_interpolated():
    """A table linear in the displacement is the same function at any size, so two table sizes must agree."""
    small = randomise_offsets(DeformableAttention(16, 4, 2, table_size=(3, 5), bound="clamp")).double()
    large = DeformableAttention(16, 4, 2, table_size=(9, 4), bound="clamp").double()
    large.load_state_dict({n: p for n, p in small.state_dict().items() if n != "bias_table"}, strict=False)
    for layer in (small, large):
        rows, cols = layer.bias_table.shape[1:]
        y, x = torch.linspace(-1, 1, rows)[:, None], torch.linspace(-1, 1, cols)
        layer.bias_table.data = (2 * y - 3 * x).double().expand(4, -1, -1).clone()
    image = torch.randn(1, 16, 11, 4, dtype=torch.float64)
    torch.testing.assert_close(small(image), large(image), rtol=1e-6, atol=1e-6)
    with torch.no_grad():  # and a constant one is none
        small.bias_table.fill_(3.0)
    none = DeformableAttention(16, 4, 2, position="none", bound="clamp").double()
    none.load_state_dict({n: p for n, p in small.state_dict().items() if n != "bias_table"})
    torch.testing.assert_close(small(image), none(image))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 10, "num_heads": 4}, "dim=10, num_heads=4"),
        ({"dim": 12, "num_heads": 4, "groups": 3}, "num_heads=4, groups=3"),
        ({"dim": 8, "num_heads": 2, "position": "rpe"}, "'rpe'.*relative, log_cpb, fixed, dwconv, none"),
        ({"dim": 8, "num_heads": 2, "offset_kernel": 4}, "odd.*4"),
        ({"dim": 8, "num_heads": 2, "stride": 0}, "stride.*0"),
        ({"dim": 8, "num_heads": 2, "bound": "box"}, "'box'"),
        ({"dim": 8, "num_heads": 2, "offset_range": -1.0}, "offset_range.*-1.0"),
        ({"dim": 8, "num_heads": 2, "convention": "v3"}, "'v3'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DeformableAttention(**arguments)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"\(B, 16, H, W\), got \(2, 8, 4, 4\)"):
        DeformableAttention(16, 4)(torch.randn(2, 8, 4, 4))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cuda_equals_cpu(dtype):
    layer = randomise_offsets(DeformableAttention(32, 4, 2))
    x = torch.randn(2, 32, 13, 9)
    expected = layer(x)
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        out = layer.cuda()(x.cuda())
    assert (out.float().cpu() - expected).norm() / expected.norm() < 32 * torch.finfo(dtype).eps ** (
        1.0 if dtype != torch.float32 else 0.75
    )
