"""Feed-forward layers on (B, C, H, W) maps."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

ConvMlp = Literal["none", "plain", "residual"]


class Mlp(nn.Module):
    """Two linear layers with GELU between (equation 2), optionally with a depthwise 3 x 3 convolution in the middle.

    Args:
        dim: channels C.
        expansion: hidden channels as a multiple of ``dim``.
        conv: the depthwise convolution before the activation (the released code's ``use_dwc_mlps``): "none", "plain"
            (v1) or "residual", added to what it reads (DAT++).
        drop: dropout after either layer.
    """

    def __init__(self, dim: int, expansion: float = 4.0, conv: ConvMlp = "none", drop: float = 0.0) -> None:
        super().__init__()
        if conv not in get_args(ConvMlp):
            raise ValueError(f"unknown conv {conv!r}; expected one of {', '.join(get_args(ConvMlp))}")
        hidden = int(dim * expansion)
        self.residual = conv == "residual"
        self.fc1 = nn.Linear(dim, hidden)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden) if conv != "none" else None
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        hidden = self.fc1(x.permute(0, 2, 3, 1))
        if self.conv is not None:
            local = self.conv(hidden.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            hidden = hidden + local if self.residual else local
        return self.drop(self.fc2(self.drop(self.act(hidden)))).permute(0, 3, 1, 2)
