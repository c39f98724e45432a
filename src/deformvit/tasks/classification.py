"""Image classification: cross-entropy with Mixup/CutMix to train, accuracy and a confusion matrix to evaluate."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.utils.data import default_collate

from deformvit import distributed
from deformvit.config import ClassificationConfig, DataConfig
from deformvit.data import eval_transform, open_split, train_transform
from deformvit.data.classification import CACHE, label_counts
from deformvit.errors import DataError, UserError
from deformvit.metrics.classification import CONFUSION, ClassificationMetrics, Confusion
from deformvit.models import files
from deformvit.models.descriptions import ClassifierDescription, is_ours
from deformvit.models.released import files as released_files
from deformvit.models.released import weights as released_weights
from deformvit.progress import track
from deformvit.storage import write_atomically
from deformvit.tasks import describe, fine_tuning
from deformvit.tasks.length import fill_in_length
from deformvit.tasks.loading import EvalLoader
from deformvit.tasks.preprocessing import fill_in

Batch = tuple[Tensor, Tensor]


def parse_args(args: dict[str, str]) -> dict[str, Any]:
    """``model.args`` as Python values; anything that is not a literal stays a string."""
    values: dict[str, Any] = {}
    for name, text in args.items():
        try:
            values[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):  # of a value from a file
            values[name] = text
    return values


class Classification:
    """The task contract of :mod:`deformvit.engine.loop` for a folder or table of labelled images.

    Args:
        config: the run.
        train_set: items are a normalised image (3, H, W) and a label, ``classes`` are the names of the labels; by
            default the training images of ``data.root``.
        val_set: the same for evaluation.
    """

    main_metric = "top1"

    def __init__(self, config: ClassificationConfig, train_set: Any = None, val_set: Any = None) -> None:
        described = fill_in(config)
        self.config = config
        self.known: list[str] = described.classes if described else []
        """Classes of the weights that the run starts from, where they have names."""
        self.head = "new"
        """What the classifier is at the start: kept from the weights, or new and why. Set when the model is built."""
        data = config.data
        evaluated = eval_transform(data.img_size, data.crop_pct, data.resize, data.mean, data.std)
        augmented = train_transform(data, config.augment)
        cache = Path(data.cache) if data.cache else CACHE
        split: dict[str, Any] = {"cache": cache, "holdout": data.holdout, "seed": data.holdout_seed}
        self.train_set = open_split(data.root, "train", augmented, **split) if train_set is None else train_set
        self.val_set = open_split(data.root, "val", evaluated, **split) if val_set is None else val_set
        if self.train_set.classes != self.val_set.classes:
            difference = sorted(set(self.train_set.classes) ^ set(self.val_set.classes))
            raise UserError(f"{data.root}: training and validation images have different classes: {difference}")
        self.classes: list[str] = self.train_set.classes
        self.evaluated: tuple[dict[str, float], Confusion] | None = None
        """Metrics and confusion matrix of the last evaluation."""
        fill_in_length(config, len(self.train_set))
        self.validation = EvalLoader(
            self.val_set, default_collate, data.eval_batch_size, data.workers, data.max_unreadable
        )
        augment = config.augment
        self.mixup: Mixup | None = None
        if augment.mixup > 0 or augment.cutmix > 0:
            micro_batch = data.batch_size // (distributed.size() * config.run.accumulate)
            if micro_batch % 2:
                raise UserError(
                    f"Mixup pairs the images of a micro-batch, so there must be an even number, not {micro_batch} "
                    f"(data.batch_size {data.batch_size}, shared by processes and accumulated batches)"
                )
            self.mixup = Mixup(
                augment.mixup, augment.cutmix, label_smoothing=augment.smoothing, num_classes=len(self.classes)
            )
        self.criterion: Callable[[Tensor, Tensor], Tensor] = (
            SoftTargetCrossEntropy() if self.mixup else nn.CrossEntropyLoss(label_smoothing=augment.smoothing)
        )

    def model_args(self) -> dict[str, Any]:
        """Arguments of the model besides the number of classes."""
        model = self.config.model
        args = parse_args(model.args)
        if args.get("in_chans", 3) != 3:
            raise UserError(
                f"model.args in_chans must be 3, got {args['in_chans']}: images are read as RGB, grey ones with three "
                f"equal channels"
            )
        if self.config.data.img_size and is_ours(model.name):
            args.setdefault("img_size", self.config.data.img_size)  # position tables for the size that is trained
        return args

    def build_model(self) -> nn.Module:
        """The network, from ``model.checkpoint`` where that is set; its classifier may be of other classes."""
        try:
            model = timm.create_model(
                self.config.model.name, num_classes=len(self.classes), **self.model_args(),
                drop_path_rate=self.config.model.drop_path_rate or None,
            )  # fmt: skip
        except (ValueError, TypeError, RuntimeError) as error:
            raise UserError(f"model {self.config.model.name!r} with {self.model_args()}: {error}") from error
        if self.config.model.checkpoint:
            self._load(model, files.resolve(self.config.model.checkpoint))
        return model

    def describe(self, model: nn.Module) -> list[tuple[str, str]]:
        """Images, classes, model and starting weights, in words."""
        data, name = self.config.data, self.config.model.name
        held_out = getattr(self.val_set, "notice", "") and f"holdout {data.holdout:g}, seed {data.holdout_seed}"
        return [
            describe.images(data.root, self.train_set, self.val_set, held_out),
            describe.classes(self.classes, label_counts(self.train_set), "images"),
            describe.model(name, model, f"{data.img_size} x {data.img_size} pixels"),
            describe.weights(self.config.model.checkpoint, f"classifier {self.head}"),
        ]

    def _load(self, model: nn.Module, path: Path) -> None:
        try:
            tensors = released_weights.adapt(released_files.read_checkpoint(path), model)
            tensors, self.head = fine_tuning.classifier_weights(
                model, tensors, self.classes, self.known, self.config.model.head
            )
            released_weights.load_released(model, tensors)
        except released_weights.ConversionError as error:
            name = self.config.model.name
            raise UserError(
                f"{self.config.model.checkpoint}: these weights cannot start a {name} ({error}); give "
                f"--model.checkpoint of such a model, or none to train from scratch"
            ) from error

    def body(self, model: nn.Module) -> nn.Module:
        """The whole model."""
        return model

    def collate(self, items: list[Any]) -> Batch:
        """Images and labels, stacked."""
        return default_collate(items)

    def losses(self, model: nn.Module, batch: Batch, device: torch.device) -> dict[str, Tensor]:
        """Cross-entropy with smoothed or mixed labels."""
        images, labels = (t.to(device, non_blocking=True) for t in batch)
        if self.mixup:
            images, labels = self.mixup(images, labels)
        return {"loss": self.criterion(model(images).float(), labels)}

    def evaluate(self, model: nn.Module, device: torch.device, progress: bool) -> dict[str, float]:
        """top1, of more than five classes top5, in percent and the mean cross-entropy, over all validation images."""
        metrics, confusion = evaluate(model, self.validation, self.classes, device, progress)
        self.evaluated = metrics, confusion
        return metrics

    def save_model(self, model: nn.Module, path: Path, metrics: dict[str, float]) -> None:
        """A model file that predicts on its own, see :mod:`deformvit.models.files`.

        Beside it, ``confusion.json`` is the confusion matrix of the evaluation before.
        """
        data = self.config.data
        description = ClassifierDescription(
            name=self.config.model.name, args=self.model_args(), classes=self.classes, img_size=data.img_size,
            crop_pct=data.crop_pct, resize=data.resize or "shorter", mean=data.mean, std=data.std, metrics=metrics,
        )  # fmt: skip
        files.save_model(path, model, description)
        if self.evaluated:
            measured, confusion = self.evaluated
            write_atomically(path.with_name(CONFUSION), lambda file: confusion.write(file, measured))


def open_evaluation(
    root: str,
    description: ClassifierDescription,
    name: str,
    resize: str = "",
    holdout: float = DataConfig.holdout,
    seed: int = DataConfig.holdout_seed,
) -> Any:
    """The validation images of a folder, prepared as a model's description says.

    Args:
        root: as ``data.root``.
        description: of the model.
        name: what messages call the model.
        resize: another way to resize than the description's.
        holdout, seed: as in training, where a folder has no validation images; a share of 1 takes all.

    Raises:
        UserError: a backbone without classes, or images of other classes than the model's.
    """
    if not description.classes:
        raise UserError(f"{name} is a backbone without a classifier: it predicts no classes")
    transform = eval_transform(
        description.img_size, description.crop_pct, resize or description.resize, description.mean, description.std
    )
    images = open_split(root, "val", transform, holdout=holdout, seed=seed)
    notice = getattr(images, "notice", "")
    if notice and distributed.rank() == 0:
        hint = "; --holdout 1 measures all images" if holdout < 1 else ""
        print(f"deformvit: {notice}{hint}", file=sys.stderr)
    known = description.classes
    numbered = known == [str(i) for i in range(len(images.classes))]  # a converted file that was given no names
    if list(images.classes) != known and not numbered:
        raise DataError(
            f"{root} has classes {', '.join(images.classes[:5])}, ... ({len(images.classes)}), but {name} knows "
            f"{', '.join(known[:5])}, ... ({len(known)})"
        )
    return images


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[Batch], classes: Sequence[str], device: torch.device, progress: bool
) -> tuple[dict[str, float], Confusion]:
    """Metrics and confusion matrix of ``model`` over batches of images and labels.

    Under torchrun the batches are the process' share; all return the same.

    Args:
        model: images -> logits (B, classes).
        batches: images (B, 3, H, W) and labels (B,).
        classes: names of the classes, in the order of the labels.
        device: where the model is.
        progress: whether to show it.
    """
    was_training = model.training
    model.eval()
    metrics = ClassificationMetrics(classes)
    for images, labels in track(batches, "evaluate", "batch", progress):
        metrics.update(model(images.to(device)).float(), labels.to(device))
    model.train(was_training)
    merged = ClassificationMetrics(classes)
    merged.merge(distributed.gather(metrics.state()))
    return merged.compute(), merged.confusion()
