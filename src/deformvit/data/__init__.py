"""Datasets and transforms."""

from deformvit.data.datasets import open_split
from deformvit.data.transforms import eval_transform, train_transform
from deformvit.errors import DataError

__all__ = ["DataError", "eval_transform", "open_split", "train_transform"]
