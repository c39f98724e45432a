"""The paper's figures, as functions that return Matplotlib figures."""

from deformvit.figures.points import points

__all__ = ["points"]
