"""Parts that several layers share: checks, padding, MLP, and computation in chunks, on (B, C, H, W) maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deformvit.ops.symbolic import statically_true
from deformvit.ops.tracing import is_tracing, is_transformed

ConvMlp = Literal["none", "plain", "residual"]


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, ...), with any number of axes after them."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...)."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def check_choice(name: str, value: str, choices: object) -> None:
    """Raise ``ValueError`` unless ``value`` is one of the values of the literal type ``choices``."""
    if value not in get_args(choices):
        raise ValueError(f"unknown {name} {value!r}; expected one of {', '.join(get_args(choices))}")


def check_heads(dim: int, num_heads: int) -> None:
    """Raise ``ValueError`` unless ``dim`` channels can be split evenly into ``num_heads`` heads."""
    if dim < 1 or num_heads < 1 or dim % num_heads:
        raise ValueError(f"dim must be a multiple of num_heads, got dim={dim}, num_heads={num_heads}")


@torch.fx.wrap
def check_map(x: Tensor, dim: int, axes: int = 2) -> None:
    """Raise ``ValueError`` unless ``x`` is (B, dim, ...) with ``axes`` axes after the channels."""
    if x.ndim != axes + 2 or x.shape[1] != dim:
        sides = {1: "L", 2: "H, W", 3: "D, H, W"}[axes]
        raise ValueError(f"expected (B, {dim}, {sides}), got {tuple(x.shape)}")


@torch.fx.wrap
def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad every axis after the channels to the next multiple, with zeros at the end: at a map's bottom and right."""
    if all(statically_true(n % multiple == 0) for n in x.shape[2:]):
        return x
    return F.pad(x, [side for n in reversed(x.shape[2:]) for side in (0, -n % multiple)])


CHUNK_SIZE = 1 << 18
"""Activations that a thread computes at a time in inference on the CPU. They stay in its cache, and their buffers are
reused instead of being allocated again for every block."""


def can_chunk(x: Tensor, *modules: nn.Module) -> bool:
    """Whether ``modules``, which treat every token by itself, may be called on chunks of ``x``.

    True in eager inference on the CPU, unless one of the modules has a hook, which expects the complete activations.
    """
    if type(x) is not Tensor or x.device.type != "cpu" or torch.is_grad_enabled():
        return False
    if torch.compiler.is_compiling() or is_tracing() or is_transformed():
        return False
    parts = [part for module in modules for part in module.modules()]
    return not any(part.training or part._forward_hooks or part._forward_pre_hooks for part in parts)


def chunks(x: Tensor, channels: int) -> Sequence[Tensor]:
    """``x`` (n, ..., C) split along its first axis so that ``channels`` activations per token fit into the caches."""
    tokens = max(x.numel() // x.shape[-1], 1)
    return x.split(max(CHUNK_SIZE * torch.get_num_threads() * len(x) // (tokens * channels), 1))


def apply_in_chunks(function: Callable[[Tensor], Tensor], x: Tensor, channels: int) -> Tensor:
    """``function`` of a (B, C, H, W) map, which must treat every token by itself, computed in chunks of (1, C, 1, n).

    If ``x`` is stored channels last it is overwritten, which saves allocating the result.

    Args:
        channels: the largest number of activations per token inside ``function``; decides the size of a chunk.
    """
    tokens = x.permute(0, 2, 3, 1)
    flat = tokens.flatten(0, 2)
    for chunk in chunks(flat, channels):
        chunk.copy_(function(chunk[None, None].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)[0, 0])
    return flat.reshape(tokens.shape).permute(0, 3, 1, 2)


class Mlp(nn.Module):
    """Two linear layers with GELU between (equation 2), optionally with a depthwise 3 x 3 convolution in the middle.

    Args:
        dim: channels C.
        expansion: hidden channels as a multiple of ``dim``.
        conv: the depthwise convolution before the activation (the released code's ``use_dwc_mlps``): "none", "plain"
            (v1) or "residual", its output added to its input (DAT++).
        drop: dropout after either layer.
    """

    def __init__(self, dim: int, expansion: float = 4.0, conv: ConvMlp = "none", drop: float = 0.0) -> None:
        super().__init__()
        check_choice("conv", conv, ConvMlp)
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
