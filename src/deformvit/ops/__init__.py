"""Pure tensor functions: coordinates and attention."""

from deformvit.ops.deformable import attention_impl, deform_attn, log_displacement
from deformvit.ops.neighborhood import neighborhood_attn

__all__ = ["attention_impl", "deform_attn", "log_displacement", "neighborhood_attn"]
