"""What a model makes of one image: for figures, and the page that explores it."""

from deformvit.explore.look import Look, look

__all__ = ["Look", "look"]
