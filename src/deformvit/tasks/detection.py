"""Object detection and instance segmentation on data in COCO's format, measured by COCO's average precision."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deformvit import distributed
from deformvit.config import DetectionConfig
from deformvit.data import detection as coco
from deformvit.data import detection_transforms as transforms
from deformvit.metrics.detection import CocoMetrics
from deformvit.models import files
from deformvit.progress import track
from deformvit.systems import Detector, build_detector, describe_detector, taken_weights
from deformvit.tasks import describe, image_sizes
from deformvit.tasks.classification import parse_args
from deformvit.tasks.length import fill_in_length
from deformvit.tasks.loading import EvalLoader
from deformvit.tasks.preprocessing import fill_in

Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


class Detection:
    """The task contract of :mod:`deformvit.engine.loop` for a folder in COCO's format."""

    def __init__(self, config: DetectionConfig) -> None:
        described = fill_in(config)
        self.config = config
        self.masks = config.head.system != "retinanet"
        self.main_metric = "mask_AP" if self.masks else "box_AP"
        data = config.data
        self.train_set = coco.open_coco(data.root, "train", masks=self.masks)
        image_sizes.fill_in_detection(config, self.train_set.sizes(), self.train_set.sides(), described)
        fill_in_length(config, len(self.train_set))
        self.train_set.transform = transforms.train_transform(data)
        self.classes: list[str] = self.train_set.classes
        self.val_set = open_evaluation(data.root, self.masks, self.classes)
        self.validation = EvalLoader(self.val_set, coco.collate, 1, data.workers, data.max_unreadable)
        for problem in (*self.train_set.warnings, *self.val_set.warnings) if distributed.rank() == 0 else ():
            print(f"deformvit: {problem}", file=sys.stderr)

    def build_model(self) -> nn.Module:
        """The detector, its backbone from ``model.checkpoint`` where that is set."""
        return build_detector(self.config, len(self.classes), parse_args(self.config.model.args))

    def describe(self, model: nn.Module) -> list[tuple[str, str]]:
        """Images, classes, model and starting weights, in words."""
        data, config = self.config.data, self.config.model
        return [
            describe.images(data.root, self.train_set, self.val_set),
            describe.classes(self.classes, self.train_set.label_counts(), "objects"),
            describe.model(
                f"{self.config.head.system} on {config.name}",
                model,
                f"{data.eval_size} pixels at the shorter side in evaluation",
            ),
            describe.weights(config.checkpoint, taken_weights(config.checkpoint)),
        ]

    def body(self, model: nn.Module) -> nn.Module:
        """The backbone; what follows changes its shapes with every image."""
        assert isinstance(model, Detector)
        return model.backbone.model

    def collate(self, items: list[Any]) -> Batch:
        """Lists, as images differ in size."""
        return coco.collate(items)

    def losses(self, model: nn.Module, batch: Batch, device: torch.device) -> dict[str, Tensor]:
        """What the system names: of classes, boxes, masks and proposals."""
        images, targets = batch
        return model(
            [image.to(device, non_blocking=True) for image in images],
            [{name: value.to(device, non_blocking=True) for name, value in target.items()} for target in targets],
        )

    def evaluate(self, model: nn.Module, device: torch.device, progress: bool) -> dict[str, float]:
        """COCO's average precision of boxes and masks, in percent."""
        assert isinstance(model, Detector)
        return evaluate(model, self.validation, device, progress)[0]

    def save_model(self, model: nn.Module, path: Path, metrics: dict[str, float]) -> None:
        """A model file that predicts on its own, with its description in the header."""
        assert isinstance(model, Detector)
        files.save_model(path, model, describe_detector(model, self.classes, metrics))


def open_evaluation(root: str, masks: bool, classes: list[str]) -> coco.CocoImages:
    """The validation images of a folder, for a model that knows ``classes``."""
    return coco.open_coco(root, "val", transforms.eval_transform(), masks=masks, classes=classes)


@torch.inference_mode()
def evaluate(
    model: Detector, batches: EvalLoader[coco.CocoImages], device: torch.device, progress: bool
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Average precision over all images that can be read, and the detections in COCO's format.

    Under torchrun every process takes its share of the images; all return the same.
    """
    was_training, images = model.training, batches.images
    model.eval()
    metrics = CocoMetrics(
        images.ground_truth, images.category_ids, images.image_ids, model.has_masks, model.config.detections
    )
    for batch, targets in track(batches, "evaluate", "image", progress):
        found = model([image.to(device) for image in batch])
        for target, prediction in zip(targets, found, strict=True):
            metrics.update(int(target["image_id"]), prediction)
    model.train(was_training)
    own = list(metrics.results)
    metrics.results.clear()
    metrics.merge(distributed.gather(own))
    metrics.leave_out([images.image_ids[index] for index in batches.left_out()])
    return metrics.compute(), metrics.results
