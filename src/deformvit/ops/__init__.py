"""Pure tensor functions: coordinates and attention."""

from deformvit.ops.deform_attn import deform_attn, log_displacement
from deformvit.ops.neighborhood import neighborhood_attn

__all__ = ["deform_attn", "log_displacement", "neighborhood_attn"]
