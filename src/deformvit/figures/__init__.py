"""The paper's figures and those of training, as functions that return Matplotlib figures."""

from deformvit.figures.attention import keys, query
from deformvit.figures.common import grid_notes, outside_notes
from deformvit.figures.confusion import confusion
from deformvit.figures.curves import comparison, curves, read_log
from deformvit.figures.objects import objects
from deformvit.figures.offsets import offset_statistics, offsets
from deformvit.figures.points import points
from deformvit.figures.summary import summary

__all__ = [
    "comparison", "confusion", "curves", "grid_notes", "keys", "objects", "offset_statistics", "offsets",
    "outside_notes", "points", "query", "read_log", "summary",
]  # fmt: skip
