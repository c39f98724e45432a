"""Pure tensor functions: coordinates and attention."""

from deformvit.ops.deform_attn import deform_attn

__all__ = ["deform_attn"]
