"""The paper's figures and those of training, as functions that return Matplotlib figures."""

from deformvit.figures.attention import keys, query
from deformvit.figures.confusion import confusion
from deformvit.figures.curves import comparison, curves, read_log
from deformvit.figures.offsets import offset_statistics, offsets
from deformvit.figures.points import objects, points

__all__ = [
    "comparison", "confusion", "curves", "keys", "objects", "offset_statistics", "offsets", "points", "query",
    "read_log",
]  # fmt: skip
