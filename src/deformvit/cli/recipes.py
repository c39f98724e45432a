"""``deformvit recipes``."""

from __future__ import annotations

from deformvit import recipes
from deformvit.cli.inputs import print_values


def run() -> None:
    """List the recipes of `train`, with the results that the papers report for them."""
    print_values(recipes.summaries())
