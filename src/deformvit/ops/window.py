"""Windows of a map (Swin Transformer, arXiv 2103.14030): partition, bias and mask, and a kernel for inference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from deformvit.ops.constants import ConstantCache
from deformvit.ops.native import library
from deformvit.ops.symbolic import statically_true
from deformvit.ops.tracing import is_tracing, is_transformed

MAX_TOKENS = 256
"""Tokens of the largest window that the CPU kernels take."""

_CONSTANTS = ConstantCache(capacity=64)  # those of a large model at a few sizes


@torch.fx.wrap
def partition(x: Tensor, window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """(B, H, W, C) -> (B * windows, h * w, C), windows row by row of the map rolled up and left by ``shift``.

    A map whose size is not a multiple of the window is padded at the bottom and right; :func:`bias_and_mask` masks the
    padding.
    """
    batch, height, width, channels = x.shape
    (win_h, win_w), (rows, cols) = window, _counts(x, window)
    if not (statically_true(rows * win_h == height) and statically_true(cols * win_w == width)):
        x = F.pad(x, (0, 0, 0, cols * win_w - width, 0, rows * win_h - height))
    if any(shift):
        x = x.roll((-shift[0], -shift[1]), dims=(1, 2))
    windows = x.reshape(batch, rows, win_h, cols, win_w, channels).transpose(2, 3)
    return windows.reshape(batch * rows * cols, win_h * win_w, channels)


@torch.fx.wrap
def merge(windows: Tensor, x: Tensor, window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """The inverse of :func:`partition`; ``x`` is the map that was partitioned."""
    height, width = x.shape[1:3]
    (win_h, win_w), (rows, cols) = window, _counts(x, window)
    out = windows.reshape(-1, rows, cols, win_h, win_w, windows.shape[-1]).transpose(2, 3)
    out = out.reshape(-1, rows * win_h, cols * win_w, windows.shape[-1])
    if any(shift):
        out = out.roll(shift, dims=(1, 2))
    return out[:, :height, :width]


def _counts(x: Tensor, window: tuple[int, int]) -> tuple[int, int]:
    return -(-x.shape[1] // window[0]), -(-x.shape[2] // window[1])


@torch.fx.wrap
def fit(x: Tensor, size: int, shift: int, swin: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    """Window and shift along both axes of the map (B, H, W, C).

    Along an axis where the map is not larger than the window, an unshifted window is cut to the map, so that nothing is
    padded. A shifted one is cut too and not shifted with ``swin``, as in Swin Transformer; without, it keeps size and
    shift, as in the released DAT.
    """
    # Branches, not min(): under torch.compile they leave plain numbers instead of expressions of the image's size.
    tall, wide = x.shape[1] > size, x.shape[2] > size
    if shift and not swin:
        return (size, size), (shift, shift)
    return (size if tall else x.shape[1], size if wide else x.shape[2]), (shift if tall else 0, shift if wide else 0)


@torch.fx.wrap
def bias_and_mask(
    table: Tensor, size: int, x: Tensor, window: tuple[int, int], shift: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """Position bias of the windows of :func:`partition`; minus infinity where a query must not attend to a key.

    Args:
        table: ((2 size - 1)^2, M) bias of each displacement in a window of side ``size``.
        x: (B, H, W, C) map.

    Returns:
        (1, M, L, L), or (B * windows, M, L, L) where windows differ.
    """
    index = _CONSTANTS.get(_index, size, *window, table.device)
    bias = table[index.flatten()].unflatten(0, index.shape).permute(2, 0, 1)[None].to(dtype)
    mask = _mask(x, window, shift)
    if mask is None:
        return bias
    return torch.where(mask[:, None], bias, float("-inf")).repeat(x.shape[0], 1, 1, 1)


def _index(size: int, win_h: int, win_w: int, device: torch.device) -> Tensor:
    """(L, L) row of the table that holds the bias of each query and key."""
    y, x = (
        torch.arange(win_h, device=device).repeat_interleave(win_w),
        torch.arange(win_w, device=device).repeat(win_h),
    )
    return (y[:, None] - y + size - 1) * (2 * size - 1) + x[:, None] - x + size - 1


def _mask(x: Tensor, window: tuple[int, int], shift: tuple[int, int]) -> Tensor | None:
    """(windows, L, L) True where the query may attend to the key: on the same side of the map's border, which the
    shift rolled into the window, and not padding. None where every query may attend to every key."""
    hw = x.shape[1], x.shape[2]
    if not any(shift) and statically_true(hw[0] % window[0] == 0) and statically_true(hw[1] % window[1] == 0):
        return None
    return _CONSTANTS.get(_may_attend, *hw, *window, *shift, x.device)


def _may_attend(
    height: int, width: int, win_h: int, win_w: int, shift_y: int, shift_x: int, device: torch.device
) -> Tensor:
    def regions(n: int, w: int, s: int) -> tuple[Tensor, Tensor]:
        total = -(-n // w) * w
        index = torch.arange(total, device=device)
        source = (index + s) % total  # the pixel that the roll moved here
        return (index >= total - s).long().reshape(-1, w), (source < n).reshape(-1, w)

    (rolled_y, on_map_y), (rolled_x, on_map_x) = regions(height, win_h, shift_y), regions(width, win_w, shift_x)

    def windows(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:  # (rows, h), (cols, w) -> (rows * cols, h * w)
        shape = y.shape[0], x.shape[0], y.shape[1], x.shape[1]
        y_all, x_all = y[:, None, :, None].expand(shape), x[None, :, None, :].expand(shape)
        return y_all.reshape(-1, shape[2] * shape[3]), x_all.reshape(-1, shape[2] * shape[3])

    sy, sx = windows(rolled_y, rolled_x)
    ry, rx = windows(on_map_y, on_map_x)
    region = torch.where(ry & rx, 2 * sy + sx, -1)  # padding is its own region, so no row is empty
    return region[:, :, None] == region[:, None, :]


def can_attend(x: Tensor, table: Tensor, window_size: int) -> bool:
    """Whether :func:`attend` can compute the map ``x``: in inference on the CPU, if the kernels are compiled."""
    return (
        type(x) is Tensor  # not a proxy of torch.fx nor a fake tensor
        and x.device.type == "cpu"
        and library.MISSING is None
        and x.dtype in (torch.float32, torch.bfloat16)
        and table.dtype == x.dtype
        and window_size**2 <= MAX_TOKENS
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not is_tracing()
        and not is_transformed()
    )


@torch.library.custom_op("deformvit::window_attn_cpu", mutates_args=(), device_types="cpu")
def attend(qkv: Tensor, table: Tensor, size: int, window: Sequence[int], shift: Sequence[int]) -> Tensor:
    """Attention in windows, read from the map and written to it without rolling, padding, partitioning or masking.

    Forward only. :func:`partition`, :func:`bias_and_mask` and PyTorch's attention compute the same with gradients.

    Args:
        qkv: (B, H, W, 3, M, d), contiguous.
        table: ((2 size - 1)^2, M), as for :func:`bias_and_mask`.
        window, shift: as for :func:`partition`.

    Returns:
        (B, H, W, M, d).
    """
    batch, height, width, _, heads, dim = qkv.shape
    qkv, bias = qkv.contiguous(), table.float().contiguous()
    out = qkv.new_empty(batch, height, width, heads, dim)
    problem = library.WindowProblem(
        batch=batch, height=height, width=width, heads=heads, dim=dim, window_h=window[0], window_w=window[1],
        shift_y=shift[0], shift_x=shift[1], side=size, bfloat16=qkv.dtype == torch.bfloat16, scale=dim**-0.5,
        qkv=qkv.data_ptr(), table=bias.data_ptr(), out=out.data_ptr(),
    )  # fmt: skip
    library.call("windows", problem)
    return out
