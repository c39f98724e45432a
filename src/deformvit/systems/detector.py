"""Detectors: RetinaNet, Mask R-CNN and Cascade Mask R-CNN from torchvision's parts, on images of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.transforms.v2 import functional as images_v2

from deformvit.config import DetectorConfig
from deformvit.errors import UserError
from deformvit.sizes import fit
from deformvit.systems.backbone import Backbone
from deformvit.systems.cascade import CascadeRoIHeads
from deformvit.systems.masks import TARGET_SHIFT, paste
from deformvit.systems.pyramid import RATIOS, Anchors, Pyramid, roi_pool

Target = dict[str, Tensor]
MAX_SIZE = 1333
"""Longer side of an image at most, as published."""
DEFAULT_STAGES = {"retinanet": (2, 3, 4), "mask_rcnn": (1, 2, 3, 4), "cascade_mask_rcnn": (1, 2, 3, 4)}


class Detector(nn.Module):
    """A detection network for images of any sizes.

    For training the loader resizes and augments images. In evaluation the detector resizes them itself and returns
    detections in pixels of the images it was given. Images are never padded: those of one size are computed together,
    others one after another, so detections do not depend on the other images of a batch.

    Args:
        backbone: computes the feature maps.
        config: the system and its heads.
        num_classes: number of classes, without background.
        mean: mean of the RGB channels, from 0 to 1.
        std: standard deviation of the RGB channels.
        eval_size: shorter side in evaluation, in pixels; 0 leaves images at their own size.
        max_size: greatest longer side in evaluation, in pixels; 0 for 1333.

    Raises:
        UserError: no classes.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        config: DetectorConfig,
        num_classes: int,
        *,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        eval_size: int = 0,
        max_size: int = 0,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise UserError(f"a detector needs at least one class, got {num_classes}")
        self.config, self.num_classes = config, num_classes
        self.eval_size, self.max_size = eval_size, max_size or MAX_SIZE
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        build = _retinanet if config.system == "retinanet" else _rcnn
        self.network: nn.Module = build(backbone, config, num_classes)
        self.first_label = 0 if config.system == "retinanet" else 1
        """Label of the first class inside the network; for R-CNNs, 0 is the background."""

    @property
    def backbone(self) -> Backbone:
        """The backbone below the feature pyramid."""
        body = self.network.get_submodule("backbone.body")
        assert isinstance(body, Backbone)
        return body

    @property
    def has_masks(self) -> bool:
        """Whether detections have masks."""
        return self.config.system != "retinanet"

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) to which an image is resized in evaluation."""
        shorter = self.eval_size or min(height, width)
        return fit((height, width), (min(shorter, self.max_size), self.max_size))

    def forward(self, images: Sequence[Tensor], targets: Sequence[Target] | None = None) -> Any:
        """Losses in training, detections in evaluation.

        Args:
            images: (3, H, W) each, RGB from 0 to 1, of any sizes.
            targets: in training, of each image ``boxes`` (n, 4) as x1, y1, x2, y2 in pixels, ``labels`` (n) from 0
                and, for R-CNNs, ``masks`` (n, H, W).

        Returns:
            In training scalar losses by name. In evaluation for each image ``boxes`` (n, 4) in its pixels, ``scores``
            (n), ``labels`` (n) from 0 and, for R-CNNs, ``masks`` (n, H, W) bool; highest score first.

        Raises:
            ValueError: training without targets, or images that are not (3, H, W).
            UserError: in training, labels that are not classes, such as torchvision's, which count from 1.
        """
        for image in images:
            if image.dim() != 3 or image.shape[0] != 3 or min(image.shape) < 1:
                raise ValueError(f"images must be (3, H, W), got {tuple(image.shape)}")
        if self.training:
            if targets is None or len(targets) != len(images):
                raise ValueError(f"training needs a target for each of {len(images)} images")
            return self._losses(images, targets)
        return self._detect(images)

    def _losses(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        for target in targets:
            labels = target["labels"]
            if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
                raise UserError(
                    f"labels must be from 0 to {self.num_classes - 1}, got {int(labels.min())} to {int(labels.max())}; "
                    f"torchvision's, which count from 1, are these plus 1"
                )
        total: dict[str, Tensor] = {}
        for indices in _by_size(images):
            batch = [(images[i] - self.mean) / self.std for i in indices]
            shifted = [{**targets[i], "labels": targets[i]["labels"] + self.first_label} for i in indices]
            for name, loss in self.network(batch, shifted).items():
                weighted = loss * (len(indices) / len(images))
                total[name] = total[name] + weighted if name in total else weighted
        return total

    def _detect(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        resized = [
            (images_v2.resize(image, list(self.input_size(*size)), antialias=True) - self.mean) / self.std
            for image, size in zip(images, sizes, strict=True)
        ]
        detections: dict[int, dict[str, Tensor]] = {}
        for indices in _by_size(resized):
            for i, result in zip(indices, self.network([resized[i] for i in indices]), strict=True):
                detections[i] = self._to_image(result, (resized[i].shape[1], resized[i].shape[2]), sizes[i])
        return [detections[i] for i in range(len(images))]

    def _to_image(self, result: dict[str, Tensor], size: tuple[int, int], image: tuple[int, int]) -> dict[str, Tensor]:
        """Detections in the resized image (H, W ``size``) -> detections in the original (H, W ``image``)."""
        (height, width), (rows, cols) = size, image
        boxes = result["boxes"].float()
        boxes = boxes * boxes.new_tensor([cols / width, rows / height] * 2)
        detections = {"boxes": boxes, "scores": result["scores"], "labels": result["labels"] - self.first_label}
        if "masks" in result:
            pasted = [torch.zeros(0, rows, cols, dtype=torch.bool, device=boxes.device)]
            shift = (TARGET_SHIFT * rows / height, TARGET_SHIFT * cols / width)
            for start in range(0, len(boxes), 16):  # in float32, all masks of a large image are gigabytes
                part = slice(start, start + 16)
                pasted.append(paste(result["masks"][part, 0].float(), boxes[part], image, shift) >= 0.5)
            detections["masks"] = torch.cat(pasted)
        return detections

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters, besides norms and biases, that are not decayed."""
        return {f"network.backbone.body.{name}" for name in self.backbone.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: ARG002 - timm's signature
        """timm's description of layer groups, for layer-wise learning rates."""
        return self.backbone.group_matcher("network.backbone.body")


class _StackImages(nn.Module):
    """Replaces torchvision's GeneralizedRCNNTransform: stacks images of one size, which are already normalised."""

    def forward(
        self, images: list[Tensor], targets: list[Target] | None = None
    ) -> tuple[ImageList, list[Target] | None]:
        return ImageList(torch.stack(images), [(image.shape[1], image.shape[2]) for image in images]), targets

    def postprocess(self, result: Any, *_sizes: Any) -> Any:
        return result


class _RPNHead(RPNHead):
    """torchvision's with float32 outputs under autocast, as boxes in bfloat16 would have steps of up to 8 pixels."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, offsets = super().forward(x)
        return [values.float() for values in logits], [values.float() for values in offsets]


class _BoxPredictor(FastRCNNPredictor):
    """torchvision's with float32 outputs under autocast."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, offsets = super().forward(x)
        return logits.float(), offsets.float()


class _RetinaNetHead(RetinaNetHead):
    """torchvision's with float32 outputs under autocast."""

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        return {name: values.float() for name, values in super().forward(x).items()}


def _by_size(images: Sequence[Tensor]) -> list[list[int]]:
    """Indices of the images of each size."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(tuple(image.shape), []).append(i)
    return list(groups.values())


def _retinanet(backbone: Backbone, config: DetectorConfig, num_classes: int) -> nn.Module:
    """RetinaNet on anchors of three sizes and ratios, as in mmdetection and torchvision."""
    pyramid = Pyramid(backbone, config.channels, "convolutions")
    anchors = Anchors(pyramid.strides, config.anchor_scale or 4.0, octaves=3)
    head = _RetinaNetHead(config.channels, anchors.num_anchors_per_location()[0], num_classes)
    network = RetinaNet(
        pyramid, num_classes, anchor_generator=anchors, head=head, score_thresh=config.score_threshold,
        nms_thresh=config.nms_threshold, detections_per_img=config.detections,
    )  # fmt: skip
    network.transform = _StackImages()
    return network


def _box_head(config: DetectorConfig) -> nn.Module:
    channels = config.channels
    if config.box_head == "2fc":
        return TwoMLPHead(channels * 7 * 7, config.box_channels)
    return FastRCNNConvFCHead((channels, 7, 7), [channels] * 4, [config.box_channels], norm_layer=nn.BatchNorm2d)


def _mask_head(config: DetectorConfig, num_classes: int) -> tuple[nn.Module, nn.Module]:
    channels = config.channels
    return MaskRCNNHeads(channels, [channels] * 4, 1), MaskRCNNPredictor(channels, channels, num_classes)


def _rcnn(backbone: Backbone, config: DetectorConfig, num_classes: int) -> nn.Module:
    """Mask R-CNN, or its cascade; class 0 is the background."""
    pyramid = Pyramid(backbone, config.channels, "pool")
    anchors = Anchors(pyramid.strides, config.anchor_scale or 8.0)
    rpn = RegionProposalNetwork(
        anchors, _RPNHead(config.channels, len(RATIOS)),
        fg_iou_thresh=0.7, bg_iou_thresh=0.3, batch_size_per_image=config.rpn_rois, positive_fraction=0.5,
        pre_nms_top_n={"training": 2 * config.proposals, "testing": config.proposals},
        post_nms_top_n={"training": config.proposals, "testing": config.proposals}, nms_thresh=0.7,
    )  # fmt: skip
    classes = num_classes + 1
    roi_args: dict[str, Any] = {
        "batch_size_per_image": config.rois, "positive_fraction": 0.25,
        "score_thresh": config.score_threshold, "nms_thresh": config.nms_threshold,
        "detections_per_img": config.detections,
        "box_roi_pool": roi_pool(backbone.strides, 7), "mask_roi_pool": roi_pool(backbone.strides, 14),
    }  # fmt: skip
    if config.system == "mask_rcnn":
        mask_head, mask_predictor = _mask_head(config, classes)
        heads: RoIHeads = RoIHeads(
            box_head=_box_head(config), box_predictor=_BoxPredictor(config.box_channels, classes),
            fg_iou_thresh=0.5, bg_iou_thresh=0.5, bbox_reg_weights=None, mask_head=mask_head,
            mask_predictor=mask_predictor, **roi_args,
        )  # fmt: skip
    else:
        heads = CascadeRoIHeads(
            lambda: _box_head(config), config.box_channels, lambda: nn.Sequential(*_mask_head(config, classes)),
            classes, config.class_agnostic, **roi_args,
        )  # fmt: skip
    return GeneralizedRCNN(pyramid, rpn, heads, _StackImages())
