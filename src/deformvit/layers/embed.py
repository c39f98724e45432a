"""Stems and downsampling: from an image to a feature map, and from a map to a smaller one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from deformvit.layers import common
from deformvit.ops import grid


class PatchEmbed(nn.Module):
    """Strided convolution and norm. A map whose size is not a multiple of the stride is zero-padded, never cropped.

    Args:
        kernel: side of the kernel: ``stride`` for patches side by side, an odd number for overlapping ones (Table 9).
        dense: keep the kernel but set the stride to 1 and pad at the bottom and right, so that the map keeps its size
            (a smaller output stride for dense prediction).
    """

    def __init__(
        self, in_chans: int, dim: int, stride: int, kernel: int | None = None, bias: bool = False, dense: bool = False
    ) -> None:
        super().__init__()
        kernel = stride if kernel is None else kernel
        if kernel != stride and (kernel < stride or kernel % 2 == 0):
            raise ValueError(f"an overlapping kernel must be odd and at least the stride {stride}, got {kernel}")
        self.stride = 1 if dense else stride
        self.overlap = kernel != stride
        self.end = kernel - 1 if dense and not self.overlap else 0
        self.conv = nn.Conv2d(in_chans, dim, kernel, self.stride, (kernel // 2) if self.overlap else 0, bias=bias)
        self.norm = LayerNorm2d(dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, dim, ceil(H / stride), ceil(W / stride))."""
        if self.end:
            x = F.pad(x, (0, self.end, 0, self.end))
        elif not self.overlap:
            x = common.pad_to_multiple(x, self.stride)
        return self.norm(self.conv(x))


class ConvStem(nn.Module):
    """Two strided 3 x 3 convolutions with norms and a GELU between them: the stem of DAT++, stride 2 and 2."""

    def __init__(self, in_chans: int, dim: int, stride: int) -> None:
        super().__init__()
        if stride % 2 or dim % 2:
            raise ValueError(f"a convolutional stem needs an even stride and dim, got stride={stride}, dim={dim}")
        self.conv = nn.Conv2d(in_chans, dim // 2, 3, stride // 2, 1)
        self.norm = LayerNorm2d(dim // 2, eps=1e-5)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, 2, 1)
        self.norm2 = LayerNorm2d(dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, dim, ceil(H / stride), ceil(W / stride))."""
        return self.norm2(self.conv2(self.act(self.norm(self.conv(x)))))


class PatchMerging(nn.Module):
    """Swin's downsampling: the channels of 2 x 2 pixels concatenated, a norm, a linear layer without bias."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_chans)
        self.reduction = nn.Linear(4 * in_chans, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, dim, ceil(H / 2), ceil(W / 2))."""
        x = common.pad_to_multiple(x, 2)
        # Swin orders the four by column, then row.
        four = [x[:, :, row::2, col::2] for col in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(four, 1).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


@torch.fx.wrap
def _box_points(boxes: Tensor, side: int, size: torch.Size) -> Tensor:
    """(B, 4, h, w) predictions -> (B, h, w, side, side, 2) positions on a map whose shape is ``size``.

    Channels are the box's shift (y, x), in patches, and its growth (y, x). A shift is at most one patch; a box extends
    one to two patches from its centre to either side.
    """
    dtype = torch.promote_types(boxes.dtype, torch.float32)
    rows, cols = boxes.shape[2:]
    boxes = boxes.permute(0, 2, 3, 1).to(dtype)
    patch = boxes.new_tensor([size[2] / rows, size[3] / cols])
    cells = grid.to_index(grid.query_points((rows, cols), "aligned", device=boxes.device, dtype=dtype), (rows, cols))
    centre = (cells + 0.5 + boxes[..., :2].tanh()) * patch - 0.5
    extent = (1 + boxes[..., 2:].tanh().relu()) * patch
    lattice = grid.query_points((side, side), "aligned", device=boxes.device, dtype=dtype)
    index = centre[..., None, None, :] + extent[..., None, None, :] * lattice
    return grid.from_index(index, size[2:]).clamp(-1, 1)


class DeformablePatchEmbed(nn.Module):
    """Patches of predicted position and size ("DPT: Deformable Patch-based Transformer", arXiv 2107.14467, 3.2).

    The features of a patch predict the shift and the size of its box. A lattice of points in the box is sampled
    bilinearly, and a linear layer combines the samples. Boxes are initialised centred on their patch.

    Args:
        side: points of the lattice along an axis.
    """

    def __init__(self, in_chans: int, dim: int, stride: int, side: int = 3) -> None:
        super().__init__()
        self.stride = stride
        self.side = side
        self.conv = nn.Conv2d(in_chans, in_chans, stride, stride)
        self.act = nn.GELU()
        self.box = nn.Conv2d(in_chans, 4, 1)
        self.proj = nn.Linear(in_chans * side * side, dim)
        self.norm = LayerNorm2d(dim, eps=1e-5)
        nn.init.zeros_(self.box.weight)
        with torch.no_grad():  # above the smallest size, where the growth has a gradient
            self.box.bias = nn.Parameter(torch.tensor([0.0, 0.0, 0.25, 0.25]))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, dim, ceil(H / stride), ceil(W / stride))."""
        x = common.pad_to_multiple(x, self.stride)
        points = _box_points(self.box(self.act(self.conv(x))), self.side, x.shape)
        sampled = grid.sample(x, points)  # (B, C, h, w, side, side)
        return self.norm(self.proj(sampled.permute(0, 2, 3, 1, 4, 5).flatten(3)).permute(0, 3, 1, 2))
