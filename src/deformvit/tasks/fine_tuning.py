"""What a run of a classifier takes from the weights that it starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from deformvit.config import ClassificationConfig
from deformvit.errors import UserError
from deformvit.models import files
from deformvit.models.descriptions import ClassifierDescription, Description
from deformvit.models.files import PYTORCH_SUFFIXES
from deformvit.models.released import files as released_files


def described(checkpoint: str) -> Description | None:
    """What the weights that a run starts from say of themselves; None without weights, or where they say nothing.

    Raises:
        UserError: there are no such weights, or what they say is invalid.
    """
    if not checkpoint:
        return None
    path = files.resolve(checkpoint)
    if path.suffix in PYTORCH_SUFFIXES:
        return released_files.describe(path)
    return files.open_model_file(path).description


def fill_in_model(config: ClassificationConfig, description: Description | None) -> None:
    """Set the name and arguments of a model whose name is left open, to those of its weights; dat_nano without any."""
    model = config.model
    if model.name:
        return
    if model.checkpoint and not isinstance(description, ClassifierDescription):
        what = f"a {description.task} model" if description else "weights that do not say which model they are of"
        raise UserError(f"{model.checkpoint}: {what}; give --model.name, the name of the classifier to train")
    if not isinstance(description, ClassifierDescription):
        model.name = "dat_nano"
        return
    model.name = description.name
    known = {name: repr(value) for name, value in description.args.items() if name != "img_size"}
    model.args = known | model.args


def classifier_rows(classes: Sequence[str], known: Sequence[str]) -> list[int] | None:
    """For each class of a data set its number in a model; None if the model does not know all of them by name."""
    if all(name.isdecimal() for name in known):  # the numbers of classes are no names
        return None
    numbers = {name: number for number, name in enumerate(known)}
    rows = [numbers.get(name) for name in classes]
    return None if None in rows else [row for row in rows if row is not None]


def classifier_weights(
    model: nn.Module, tensors: Mapping[str, Tensor], classes: Sequence[str], known: Sequence[str], head: str
) -> tuple[dict[str, Tensor], str]:
    """The weights of a checkpoint with the classifier that a run starts with, and what it is, in words.

    Args:
        model: the network, with a new classifier for ``classes``.
        tensors: the checkpoint's weights under the model's names.
        classes: of the run.
        known: of the checkpoint; empty if it does not say.
        head: ``model.head``.
    """
    layer = model.get_classifier()  # type: ignore[operator]
    prefix = next(name for name, module in model.named_modules() if module is layer)
    new = {name: value for name, value in model.state_dict().items() if name.startswith(f"{prefix}.")}
    own = {name: tensors[name] for name in new if name in tensors}
    rows = classifier_rows(classes, known) if head == "auto" else None
    if rows is not None and all(len(value) == len(known) for value in own.values()) and len(own) == len(new):
        kept = "kept" if list(classes) == list(known) else f"kept for its {len(rows)} classes of the {len(known)}"
        return {**tensors, **{name: value[rows] for name, value in own.items()}}, kept
    fits = all(name in own and own[name].shape == value.shape for name, value in new.items())
    numbered = not known or all(name.isdecimal() for name in known)
    if fits and (head == "keep" or (head == "auto" and numbered)):
        return dict(tensors), "kept"
    reason = (
        "" if head == "new" else ", as the weights have none" if not own else ", as the weights are of other classes"
    )
    return {**tensors, **new}, f"new{reason}"
