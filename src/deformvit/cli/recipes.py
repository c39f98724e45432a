"""``deformvit recipes``."""

from __future__ import annotations

from deformvit.cli.inputs import print_values


def recipes_command() -> None:
    """List the recipes of `train`, with what the papers report of them."""
    from deformvit import recipes

    print_values([(name, " ".join((recipe.__doc__ or "").split())) for name, recipe in recipes.ALL.items()])
