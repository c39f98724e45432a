"""Layers on (B, C, H, W) maps of any height and width, fastest when the map is stored channels last."""

from deformvit.layers.common import Mlp
from deformvit.layers.deformable import DeformableAttention, DeformedPoints
from deformvit.layers.pyramid import ReductionAttention
from deformvit.layers.window import WindowAttention

__all__ = ["DeformableAttention", "DeformedPoints", "Mlp", "ReductionAttention", "WindowAttention"]
