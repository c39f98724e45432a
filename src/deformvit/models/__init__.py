"""Models; importing registers them with timm."""

from deformvit.models.dat import DAT

__all__ = ["DAT"]
