"""Cascade Mask R-CNN's heads on torchvision's RoIHeads (Cai and Vasconcelos, https://arxiv.org/abs/1906.09756)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_loss
from torchvision.ops import boxes as box_ops
from torchvision.ops import generalized_box_iou_loss

IOUS = (0.5, 0.6, 0.7)
"""IoU with an object from which a region counts as that object, by stage."""
CODERS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
"""Factors of the box offsets by stage: the better the boxes, the smaller their remaining offsets."""
WEIGHTS = (1.0, 0.5, 0.25)
"""Weights of the losses by stage."""
BOX_WEIGHT = 10.0
"""Weight of the generalised IoU loss, cross-entropy having 1, as in Swin's detection settings, which the paper uses."""


class _Stage(nn.Module):
    """Box head, classifier, regression of ``boxes`` boxes for each region, and mask head of one stage."""

    def __init__(self, box_head: nn.Module, box_channels: int, mask_head: nn.Module, classes: int, boxes: int) -> None:
        super().__init__()
        self.box_head = box_head
        self.classifier = nn.Linear(box_channels, classes)
        self.regression = nn.Linear(box_channels, 4 * boxes)
        self.mask_head = mask_head

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(regions, C, 7, 7) -> class logits and box offsets, in float32."""
        features = self.box_head(features).flatten(1)
        return self.classifier(features).float(), self.regression(features).float()

    def masks(self, features: Tensor) -> Tensor:
        """(regions, C, 14, 14) -> (regions, classes, 28, 28) logits in float32."""
        return self.mask_head(features).float()


class CascadeRoIHeads(RoIHeads):
    """Three stages, each trained at a higher IoU on the boxes that the stage before it refined.

    In evaluation boxes are those of the last stage; class scores and masks are means over the stages.

    Args:
        box_head: returns a new box head for a stage.
        box_channels: channels of its output.
        mask_head: returns a new mask head for a stage, its predictor of logits included.
        classes: number of classes, with the background, which is class 0.
        class_agnostic: one box for all classes, instead of one for each.
        roi_args: further arguments of RoIHeads.
    """

    def __init__(
        self,
        box_head: Callable[[], nn.Module],
        box_channels: int,
        mask_head: Callable[[], nn.Module],
        classes: int,
        class_agnostic: bool = True,
        **roi_args: Any,
    ) -> None:
        super().__init__(
            box_head=None, box_predictor=None, fg_iou_thresh=IOUS[0], bg_iou_thresh=IOUS[0],
            bbox_reg_weights=CODERS[0], **roi_args,
        )  # fmt: skip
        self.classes = classes
        self.class_agnostic = class_agnostic
        boxes = 1 if class_agnostic else classes - 1
        stages = [_Stage(box_head(), box_channels, mask_head(), classes, boxes) for _ in IOUS]
        self.stages = nn.ModuleList(stages)
        self.coders = [BoxCoder(weights) for weights in CODERS]
        self.matchers = [Matcher(iou, iou, allow_low_quality_matches=False) for iou in IOUS]

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """As torchvision's: detections in evaluation and losses in training; the other is empty."""
        if self.training:
            assert targets is not None
            return [], self._losses(features, proposals, image_shapes, targets)
        return self._detect(features, proposals, image_shapes), {}

    def _losses(
        self, features: dict[str, Tensor], boxes: list[Tensor], shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:  # fmt: skip
        losses: dict[str, Tensor] = {}
        for number, (stage, coder, matcher, weight) in enumerate(
            zip(self._stages(), self.coders, self.matchers, WEIGHTS, strict=True), 1
        ):
            self.proposal_matcher = matcher
            boxes, matched, labels, _ = self.select_training_samples(boxes, targets)
            logits, offsets = stage(self.box_roi_pool(features, boxes, shapes))
            true_classes = torch.cat(labels)
            is_object = true_classes > 0
            # The box of the true class where there is an object, that of the highest score elsewhere.
            box_class = torch.where(is_object, true_classes - 1, logits[:, 1:].argmax(1))
            decoded = self._boxes_of(box_class, coder.decode(offsets, boxes))
            truth = torch.cat(
                [
                    t["boxes"][index] if len(t["boxes"]) else b.new_zeros(len(index), 4)
                    for t, index, b in zip(targets, matched, boxes, strict=True)
                ]
            )
            box_loss = generalized_box_iou_loss(decoded[is_object], truth[is_object].to(decoded), reduction="sum")
            losses[f"loss_classifier_{number}"] = weight * F.cross_entropy(logits, true_classes)
            losses[f"loss_box_reg_{number}"] = weight * BOX_WEIGHT * box_loss / max(len(true_classes), 1)

            positive = [torch.where(image > 0)[0] for image in labels]
            regions = [b[index] for b, index in zip(boxes, positive, strict=True)]
            masks = stage.masks(self.mask_roi_pool(features, regions, shapes))
            losses[f"loss_mask_{number}"] = weight * maskrcnn_loss(
                masks, regions, [t["masks"] for t in targets], [t["labels"] for t in targets],
                [m[index] for m, index in zip(matched, positive, strict=True)],
            )  # fmt: skip
            boxes = self._refined(decoded.detach(), [len(b) for b in boxes], shapes)
        return losses

    def _stages(self) -> list[_Stage]:
        return [stage for stage in self.stages if isinstance(stage, _Stage)]

    def _boxes_of(self, labels: Tensor, boxes: Tensor) -> Tensor:
        """The box of each region's class: labels (regions,) without background, boxes (regions, n, 4) ->
        (regions, 4)."""
        if self.class_agnostic or len(boxes) == 0:
            return boxes.reshape(-1, boxes.shape[1], 4)[:, 0] if len(boxes) else boxes.reshape(-1, 4)[:0]
        return boxes[torch.arange(len(boxes), device=boxes.device), labels]

    def _refined(self, decoded: Tensor, counts: list[int], shapes: list[tuple[int, int]]) -> list[Tensor]:
        """Boxes for the next stage: clipped to the image, without empty ones."""
        refined = []
        for boxes, shape in zip(decoded.split(counts), shapes, strict=True):
            clipped = box_ops.clip_boxes_to_image(boxes, shape)
            refined.append(clipped[box_ops.remove_small_boxes(clipped, 1e-2)])
        return refined

    def _detect(
        self, features: dict[str, Tensor], boxes: list[Tensor], shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        counts = [len(b) for b in boxes]
        scores = torch.zeros(sum(counts), self.classes, device=boxes[0].device)
        for stage, coder in zip(self._stages(), self.coders, strict=True):
            logits, offsets = stage(self.box_roi_pool(features, boxes, shapes))
            scores = scores + logits.softmax(-1) / len(self.stages)
            last_input = boxes
            decoded = self._boxes_of(logits[:, 1:].argmax(1), coder.decode(offsets, boxes)).split(counts)
            boxes = [box_ops.clip_boxes_to_image(b, shape) for b, shape in zip(decoded, shapes, strict=True)]
        # torchvision's selection takes logits and offsets of every class and ignores those of the background.
        if self.class_agnostic:
            offsets = offsets.repeat(1, self.classes)
        else:
            offsets = torch.cat([offsets.new_zeros(len(offsets), 4), offsets], 1)
        self.box_coder = self.coders[-1]
        detections = self.postprocess_detections(scores.log(), offsets, last_input, shapes)
        results = [
            {"boxes": b, "labels": label, "scores": s} for b, s, label in zip(*detections, strict=True)
        ]  # fmt: skip
        labels = torch.cat([r["labels"] for r in results])
        pooled = self.mask_roi_pool(features, [r["boxes"] for r in results], shapes)
        rows = torch.arange(len(labels), device=labels.device)
        masks = torch.stack([s.masks(pooled)[rows, labels].sigmoid() for s in self._stages()]).mean(0)
        for result, part in zip(results, masks[:, None].split([len(r["boxes"]) for r in results]), strict=True):
            result["masks"] = part
        return results
