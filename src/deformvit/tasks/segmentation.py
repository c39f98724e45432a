"""Semantic segmentation on folders in ADE20K's layout, measured by the mean intersection over union."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from deformvit import distributed
from deformvit.config import SegmentationConfig, SegmentationDataConfig
from deformvit.data import segmentation_transforms as transforms
from deformvit.data.label_check import check_labels
from deformvit.data.segmentation import SegmentationImages, open_segmentation
from deformvit.errors import UserError
from deformvit.metrics.segmentation import SegmentationMetrics
from deformvit.models import files
from deformvit.progress import track
from deformvit.systems import Segmenter, build_segmenter, describe_segmenter, taken_weights
from deformvit.tasks import describe, image_sizes
from deformvit.tasks.classification import parse_args
from deformvit.tasks.length import fill_in_length
from deformvit.tasks.loading import EvalLoader
from deformvit.tasks.preprocessing import fill_in

Batch = tuple[Tensor, Tensor]


class Segmentation:
    """The task contract of :mod:`deformvit.engine.loop` for images with a class for every pixel."""

    main_metric = "mIoU"

    def __init__(self, config: SegmentationConfig) -> None:
        described = fill_in(config)
        self.config = config
        data = config.data
        self.train_set = open_segmentation(
            data.root, "train", ignore_label=data.ignore_label, reduce_zero_label=data.reduce_zero_label
        )
        image_sizes.fill_in_segmentation(config, self.train_set.sizes(), described)
        fill_in_length(config, len(self.train_set))
        self.train_set.transform = transforms.train_transform(data)
        self.classes: list[str] = self.train_set.classes
        self.val_set = open_evaluation(data, self.classes)
        self.validation = EvalLoader(self.val_set, default_collate, 1, data.workers, data.max_unreadable)
        for split, images in (("training", self.train_set), ("validation", self.val_set)):
            for problem in check_labels(images):
                if distributed.rank() == 0:
                    print(f"deformvit: {split}: {problem}", file=sys.stderr)
        micro_batch = data.batch_size // (distributed.size() * config.run.accumulate)
        if config.head.system == "upernet" and micro_batch < 2:
            raise UserError(
                f"UperNet trains on batches of at least 2 images, data.batch_size is {data.batch_size} in all"
            )

    def build_model(self) -> nn.Module:
        """The network, its backbone from ``model.checkpoint`` where that is set."""
        return build_segmenter(self.config, len(self.classes), parse_args(self.config.model.args))

    def describe(self, model: nn.Module) -> list[tuple[str, str]]:
        """Images, classes, model and starting weights, in words."""
        data, config = self.config.data, self.config.model
        return [
            describe.images(data.root, self.train_set, self.val_set),
            describe.classes(self.classes, None, "images"),
            describe.model(
                f"{self.config.head.system} on {config.name}",
                model,
                f"crops of {data.crop_size} x {data.crop_size} pixels",
            ),
            describe.weights(config.checkpoint, taken_weights(config.checkpoint)),
        ]

    def body(self, model: nn.Module) -> nn.Module:
        """The backbone."""
        assert isinstance(model, Segmenter)
        return model.backbone.model

    def collate(self, items: list[Any]) -> Batch:
        """Images and labels, stacked."""
        return default_collate(items)

    def losses(self, model: nn.Module, batch: Batch, device: torch.device) -> dict[str, Tensor]:
        """Cross-entropy of the head, and of the auxiliary head where there is one."""
        images, labels = batch
        return model(images.to(device, non_blocking=True), labels.to(device, non_blocking=True))

    def evaluate(self, model: nn.Module, device: torch.device, progress: bool) -> dict[str, float]:
        """mIoU, mAcc and aAcc in percent."""
        assert isinstance(model, Segmenter)
        return evaluate(model, self.validation, self.config.data, device, progress)

    def save_model(self, model: nn.Module, path: Path, metrics: dict[str, float]) -> None:
        """A model file that predicts on its own, with its description in the header."""
        assert isinstance(model, Segmenter)
        reduce = self.config.data.reduce_zero_label
        files.save_model(path, model, describe_segmenter(model, self.classes, metrics, reduce_zero_label=reduce))


def open_evaluation(data: SegmentationDataConfig, classes: list[str]) -> SegmentationImages:
    """The validation images of a folder, for a model that knows ``classes``."""
    return open_segmentation(
        data.root, "val", transforms.eval_transform(data), ignore_label=data.ignore_label,
        reduce_zero_label=data.reduce_zero_label, classes=classes,
    )  # fmt: skip


@torch.inference_mode()
def evaluate(
    model: Segmenter, batches: EvalLoader[SegmentationImages], data: SegmentationDataConfig, device: torch.device,
    progress: bool, names: list[str] | None = None,
) -> dict[str, float]:  # fmt: skip
    """mIoU, mAcc and aAcc over all readable images at their own size, and the IoU of every class of ``names``.

    Under torchrun every process takes its share of the images; all return the same.
    """
    was_training = model.training
    model.eval()
    metrics = SegmentationMetrics(model.num_classes, batches.images.ignore_label)
    for image, labels in track(batches, "evaluate", "image", progress):  # one at a time, as they differ in size
        predicted = model.predict(
            image[0].to(device), scales=data.eval_scales, flip=data.eval_flip, window=data.window,
            stride=data.window_stride,
        )  # fmt: skip
        metrics.update(predicted, labels[0].to(device))
    model.train(was_training)
    others = distributed.gather(metrics.matrix.cpu())
    merged = SegmentationMetrics(model.num_classes, batches.images.ignore_label)
    merged.merge(others)
    return merged.compute(names)
