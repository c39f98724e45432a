"""What a run found, in words: the first lines that it prints."""

from __future__ import annotations

from collections.abc import Sequence, Sized

from torch import nn

LISTED = 12
"""So many classes are listed by name."""


def images(root: str, training: Sized, validation: Sized, held_out: str = "") -> tuple[str, str]:
    """How many images there are.

    Args:
        root: where they are.
        training, validation: the two parts.
        held_out: how the validation was taken out of the training images; empty if it was not.
    """
    how = f" held out ({held_out})" if held_out else ""
    return "images", f"{root}: {len(training):,} to train, {len(validation):,}{how} to validate"


def classes(names: Sequence[str], counts: Sequence[int] | None, unit: str) -> tuple[str, str]:
    """The classes and how often each occurs.

    Args:
        names: of the classes.
        counts: of each class; None where they are not at hand.
        unit: what was counted, in the plural.
    """
    number = f"{len(names):,}"
    if len(names) <= LISTED:
        listed = names if counts is None else [f"{name} {count:,}" for name, count in zip(names, counts, strict=True)]
        return "classes", f"{number}: {', '.join(listed)}"
    return "classes", number if counts is None else f"{number}, each of {min(counts):,} to {max(counts):,} {unit}"


def model(name: str, network: nn.Module, more: str) -> tuple[str, str]:
    """The network's name and size."""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return "model", f"{name}, {parameters:,} parameters, {more}"


def weights(checkpoint: str, taken: str) -> tuple[str, str]:
    """What the run starts from.

    Args:
        checkpoint: ``model.checkpoint``.
        taken: which of its weights are used, in words.
    """
    return "weights", f"{checkpoint}: {taken}" if checkpoint else "none, trained from scratch"
