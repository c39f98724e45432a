"""Window and reduction attention on maps of any size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformerBlock
from torch._subclasses.fake_tensor import FakeTensorMode

from deformvit.layers import Mlp, ReductionAttention, WindowAttention
from deformvit.ops import window
from deformvit.ops.native import library


def dense_window_attention(layer: WindowAttention, x: torch.Tensor) -> torch.Tensor:
    """Every pixel's attention over the whole map, masked to its window: no padding, rolling or window partition."""
    _, channels, height, width = x.shape
    size, shift = layer.window_size, layer.shift_size
    y, xx = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, xx = y.flatten(), xx.flatten()
    # A shifted window starts at shift, shift + size, ...; what lies before the first is a window of its own.
    same = ((y[:, None] - shift) // size == (y - shift) // size) & (
        (xx[:, None] - shift) // size == (xx - shift) // size
    )
    dy, dx = y[:, None] - y, xx[:, None] - xx
    index = (dy.clamp(1 - size, size - 1) + size - 1) * (2 * size - 1) + dx.clamp(1 - size, size - 1) + size - 1
    bias = layer.bias_table[index].permute(2, 0, 1)
    tokens = x.flatten(2).transpose(1, 2)
    q, k, v = layer.qkv(tokens).unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
    logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias
    weights = logits.masked_fill(~same, float("-inf")).softmax(-1)
    out = layer.proj((weights @ v).transpose(1, 2).flatten(2))
    return out.transpose(1, 2).reshape(-1, channels, height, width)


@pytest.mark.parametrize("hw", [(8, 12), (7, 9), (4, 4), (3, 2), (1, 1), (5, 16)])
@pytest.mark.parametrize("shift", [0, 1, 2])
def test_equals_masked_dense_attention(hw, shift):
    layer = WindowAttention(8, 2, window_size=4, shift_size=shift).double()
    torch.nn.init.normal_(layer.bias_table)
    x = torch.randn(2, 8, *hw, dtype=torch.float64)
    torch.testing.assert_close(layer(x), dense_window_attention(layer, x))


@pytest.mark.parametrize("hw", [(8, 8), (12, 16)])
def test_shifted_windows_equal_timms_swin(hw):
    swin = SwinTransformerBlock(8, hw, num_heads=2, window_size=4, shift_size=2).double().eval()
    ours = WindowAttention(8, 2, window_size=4, shift_size=2).double()
    ours.load_state_dict(
        {
            "qkv.weight": swin.attn.qkv.weight, "qkv.bias": swin.attn.qkv.bias, "proj.weight": swin.attn.proj.weight,
            "proj.bias": swin.attn.proj.bias, "bias_table": swin.attn.relative_position_bias_table,
        }
    )  # fmt: skip
    x = torch.randn(2, *hw, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), swin._attn(x))


@pytest.mark.parametrize("swin", [False, True])
@pytest.mark.parametrize(
    ("hw", "size", "shift", "dim"),
    [
        ((8, 12), 4, 0, 8),
        ((7, 9), 4, 2, 5),
        ((15, 9), 7, 4, 32),
        ((5, 20), 7, 3, 16),
        ((3, 2), 7, 0, 8),
        ((40, 17), 12, 6, 3),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inference_equals_training(hw, size, shift, dim, swin, dtype):
    """The compiled kernel, which rolls, pads and masks by arithmetic, against PyTorch's attention."""
    if library.MISSING:
        pytest.skip(library.MISSING)
    layer = WindowAttention(2 * dim, 2, size, shift, swin).eval().to(dtype)
    torch.nn.init.normal_(layer.bias_table)
    x = torch.randn(3, 2 * dim, *hw).to(dtype)
    expected = layer.double()(x.double())
    layer.to(dtype)
    low = layer(x)
    for inputs in (x, x.contiguous(memory_format=torch.channels_last)):
        with torch.no_grad():
            assert window.can_attend(inputs, layer.bias_table, size)
            out = layer(inputs)
        assert (out - expected).norm() <= 1.1 * (low - expected).norm() + torch.finfo(dtype).eps * expected.norm()


@pytest.mark.skipif(library.MISSING is not None, reason=str(library.MISSING))
@pytest.mark.parametrize("instructions", library.INSTRUCTION_SETS)
def test_inference_on_every_instruction_set(instructions):
    layer = WindowAttention(24, 3, 7, 4).eval()
    torch.nn.init.normal_(layer.bias_table)
    x = torch.randn(2, 24, 16, 11)
    with torch.inference_mode(), library.instruction_set(instructions):
        out = layer(x)
    torch.testing.assert_close(out, layer(x), rtol=1e-4, atol=1e-5)


def test_masks_made_in_inference_serve_training():
    layer = WindowAttention(8, 2, 4, 2).double()
    x = torch.randn(1, 8, 11, 9, dtype=torch.float64)  # a size of its own: the masks are not made yet
    with torch.inference_mode():
        expected = layer(x)
    out = layer(x)
    out.sum().backward()
    torch.testing.assert_close(out, expected)


def test_masks_made_of_fake_tensors_do_not_stay():
    layer, x = WindowAttention(8, 2, 4, 2), torch.randn(1, 8, 13, 9)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert layer(torch.randn(1, 8, 13, 9)).shape == (1, 8, 13, 9)
    assert type(layer(x)) is torch.Tensor


@pytest.mark.parametrize("reduction", [1, 2, 4])
@pytest.mark.parametrize("hw", [(8, 12), (7, 9), (3, 1)])
def test_reduction_attends_to_the_reduced_map(reduction, hw):
    layer = ReductionAttention(8, 2, reduction).double()
    x = torch.randn(2, 8, *hw, dtype=torch.float64)
    keys = x
    if reduction > 1:
        padded = F.pad(x, (0, -hw[1] % reduction, 0, -hw[0] % reduction))
        keys = F.conv2d(padded, layer.reduce[0].weight, layer.reduce[0].bias, stride=reduction)
        keys = F.layer_norm(keys.permute(0, 2, 3, 1), (8,), layer.reduce[1].weight, layer.reduce[1].bias)
        keys = keys.permute(0, 3, 1, 2)
    q = layer.q(x.flatten(2).transpose(1, 2)).unflatten(-1, (2, 4)).transpose(1, 2)
    k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in layer.kv(keys.flatten(2).transpose(1, 2)).chunk(2, -1))
    expected = layer.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x).flatten(2).transpose(1, 2), expected)


def test_mlp_kinds():
    x = torch.randn(2, 6, 3, 5)
    plain, residual = Mlp(6, conv="plain"), Mlp(6, conv="residual")
    residual.load_state_dict(plain.state_dict())
    with torch.no_grad():
        expected = residual(x)
        plain.conv.weight[:, :, 1, 1] += 1  # the residual in the kernel
        torch.testing.assert_close(plain(x), expected)
        # An identity kernel makes the plain one an MLP without convolution.
        plain.conv.weight.zero_()[:, :, 1, 1] = 1
        plain.conv.bias.zero_()
    without = Mlp(6)
    without.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(plain(x), without(x))
    with pytest.raises(ValueError, match="'yes'"):
        Mlp(6, conv="yes")


@pytest.mark.parametrize(("size", "shift"), [(4, 4), (4, -1), (0, 0)])
def test_bad_windows_are_named(size, shift):
    with pytest.raises(ValueError, match=f"{shift} for window {size}"):
        WindowAttention(8, 2, size, shift)
