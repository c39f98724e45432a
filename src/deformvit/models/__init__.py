"""Models; importing registers them with timm."""

from deformvit.models import dat
from deformvit.models.network import DAT

__all__ = ["DAT", "dat"]
