"""Layers on (B, C, H, W) maps of any height and width, fastest when the map is stored channels last."""

from deformvit.layers.common import ChannelNorm, Mlp
from deformvit.layers.deformable import DeformableAttention, DeformedPoints
from deformvit.layers.detr import DeformableDetrAttention
from deformvit.layers.embed import ConvStem, DeformablePatchEmbed, PatchEmbed, PatchMerging
from deformvit.layers.neighborhood import NeighborhoodAttention
from deformvit.layers.pyramid import ReductionAttention
from deformvit.layers.window import WindowAttention

__all__ = [
    "ChannelNorm",
    "ConvStem",
    "DeformableAttention",
    "DeformableDetrAttention",
    "DeformablePatchEmbed",
    "DeformedPoints",
    "Mlp",
    "NeighborhoodAttention",
    "PatchEmbed",
    "PatchMerging",
    "ReductionAttention",
    "WindowAttention",
]
