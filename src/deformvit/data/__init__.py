"""Datasets and transforms."""

from deformvit.data.classification import open_split
from deformvit.data.classification_transforms import eval_transform, train_transform
from deformvit.errors import DataError

__all__ = ["DataError", "eval_transform", "open_split", "train_transform"]
