"""Segmenters: Semantic FPN and UperNet, and their prediction of images of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork
from torchvision.transforms.v2 import functional as images_v2

from deformvit.config import SegmenterConfig
from deformvit.errors import UserError
from deformvit.sizes import OWN, fit
from deformvit.systems.backbone import Backbone


def _upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, list(size), mode="bilinear", align_corners=False)


class SemanticFPN(nn.Module):
    """torchvision's feature pyramid and the head of Kirillov et al. (https://arxiv.org/abs/1901.02446), as published.

    Convolutions, each followed by upsampling by two, bring every level to the size of the finest; then all are added.
    segmentation-models-pytorch's FPN leaves out the pyramid's 3 x 3 convolutions (2.4 M parameters at 256 channels).

    Args:
        backbone: computes the feature maps.
        channels: channels of the pyramid; the head has half as many.
        num_classes: number of classes.
        dropout: dropout of whole channels before the classifier.
    """

    def __init__(self, backbone: Backbone, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.pyramid = FeaturePyramidNetwork(backbone.channels, channels)
        hidden = channels // 2
        self.branches = nn.ModuleList()
        for level in range(len(backbone.channels)):
            convs = [
                Conv2dNormActivation(channels if i == 0 else hidden, hidden, 3, norm_layer=nn.BatchNorm2d)
                for i in range(max(level, 1))
            ]
            self.branches.append(nn.ModuleList(convs))
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(hidden, num_classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps, finest first -> (B, classes, H, W) logits at the finest map's size."""
        levels = list(self.pyramid({str(i): features for i, features in enumerate(maps)}).values())
        sizes = [features.shape[-2:] for features in levels]
        total = torch.zeros((), device=maps[0].device)
        for level, (x, convs) in enumerate(zip(levels, self.branches, strict=True)):
            assert isinstance(convs, nn.ModuleList)
            for i, conv in enumerate(convs):
                x = conv(x)
                if level:  # to the size of the next finer level: twice as large, or one less for odd maps
                    x = _upsample(x, sizes[level - 1 - i])
            total = total + x
        return self.classifier(self.dropout(total))


class UperNet(nn.Module):
    """segmentation-models-pytorch's UperNet decoder, which is the published one, without its norms of the feature maps.

    Args:
        backbone: computes the feature maps, normalised.
        channels: channels of the decoder.
        num_classes: number of classes.
        dropout: dropout of whole channels before the classifier.
    """

    def __init__(self, backbone: Backbone, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder  # an extra: see pyproject

        self.decoder = UPerNetDecoder(
            [0, 0, *backbone.channels], decoder_channels=channels
        )  # the decoder ignores the first two maps
        self.decoder.feature_norms = nn.ModuleList(nn.Identity() for _ in backbone.channels)  # the backbone normalises
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps, finest first -> (B, classes, H, W) logits at the finest map's size."""
        return self.classifier(self.dropout(self.decoder([maps[0], maps[0], *maps])))


class AuxiliaryHead(nn.Module):
    """The fully convolutional head on the last feature map but one (stage 3) that helps to train UperNet.

    Args:
        backbone: computes the feature maps.
        channels: channels of its convolution.
        num_classes: number of classes.
        dropout: dropout of whole channels before the classifier.
    """

    def __init__(self, backbone: Backbone, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.conv = Conv2dNormActivation(backbone.channels[-2], channels, 3, norm_layer=nn.BatchNorm2d)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps -> (B, classes, H, W) logits at the size of the last map but one."""
        return self.classifier(self.dropout(self.conv(maps[-2])))


class Segmenter(nn.Module):
    """A segmentation network on a backbone.

    Args:
        backbone: computes the feature maps of four stages.
        config: the system and its head.
        num_classes: number of classes.
        mean: mean of the RGB channels, from 0 to 1.
        std: standard deviation of the RGB channels.
        scale: greatest shorter and longer side in evaluation, see :func:`deformvit.sizes.fit`; by default images keep
            their own size.
        ignore_label: label of pixels that do not count in the loss.

    Raises:
        UserError: fewer than two classes.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        config: SegmenterConfig,
        num_classes: int,
        *,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        scale: tuple[int, int] = OWN,
        ignore_label: int = 255,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise UserError(f"segmentation needs at least two classes, got {num_classes}")
        self.config, self.num_classes, self.scale, self.ignore_label = config, num_classes, scale, ignore_label
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.backbone = backbone
        self.auxiliary: nn.Module | None = None
        if config.system == "semantic_fpn":
            self.head: nn.Module = SemanticFPN(backbone, config.channels or 256, num_classes, config.dropout)
        else:
            channels = config.channels or 512
            self.head = UperNet(backbone, channels, num_classes, config.dropout)
            if config.auxiliary:
                self.auxiliary = AuxiliaryHead(backbone, max(channels // 2, 1), num_classes, config.dropout)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) that an image is resized to in evaluation at scale 1."""
        return fit((height, width), self.scale)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Losses in training, logits in evaluation.

        Args:
            images: (B, 3, H, W), RGB from 0 to 1.
            labels: (B, H, W), in training.

        Returns:
            Scalar losses by name, or (B, classes, H, W) logits.

        Raises:
            ValueError: training without labels.
            UserError: training UperNet on a single image: after pooling to 1 x 1, batch norm needs at least two.
        """
        maps = self.backbone((images - self.mean) / self.std)
        if not self.training:
            return _upsample(self.head(maps).float(), images.shape[-2:])
        if labels is None:
            raise ValueError("training needs labels")
        if self.config.system == "upernet" and len(images) < 2:
            raise UserError("UperNet trains on batches of at least 2 images: batch norm after pooling to 1 x 1")
        losses = {"loss_decode": self._loss(self.head(maps), labels)}
        if self.auxiliary is not None:
            losses["loss_auxiliary"] = self.config.auxiliary * self._loss(self.auxiliary(maps), labels)
        return losses

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of the pixels that are not ignored; 0 if all are."""
        logits = _upsample(logits.float(), labels.shape[-2:])
        total = F.cross_entropy(logits, labels.long(), ignore_index=self.ignore_label, reduction="sum")
        return total / (labels != self.ignore_label).sum().clamp(min=1)

    def predict(
        self, image: Tensor, *, scales: Sequence[float] = (1.0,), flip: bool = False, window: int = 0, stride: int = 0
    ) -> Tensor:
        """The label map of one image of any size.

        Args:
            image: (3, H, W), RGB from 0 to 1.
            scales: multiples of the evaluation size over which class probabilities are averaged.
            flip: average over the mirrored image too.
            window: side of a window that slides over the resized image; 0 computes the image at once.
            stride: step of the window; two thirds of its side by default.

        Returns:
            (H, W) labels.
        """
        size = (image.shape[1], image.shape[2])
        total = torch.zeros(self.num_classes, *size, device=image.device)
        for factor in scales:
            resized = images_v2.resize(image, list(fit(size, self.scale, factor)), antialias=True)[None]
            for mirrored in (False, True) if flip else (False,):
                x = resized.flip(-1) if mirrored else resized
                logits = self._slide(x, window, stride or max(2 * window // 3, 1)) if window else self._logits(x)
                logits = logits.flip(-1) if mirrored else logits
                total += _upsample(logits, size)[0].softmax(0)
        return total.argmax(0)

    def _logits(self, images: Tensor) -> Tensor:
        logits = self(images)
        assert isinstance(logits, Tensor)
        return logits

    def _slide(self, images: Tensor, window: int, stride: int) -> Tensor:
        """Mean logits of overlapping windows; the last one of a row or column ends at the border."""
        height, width = images.shape[-2:]
        total = images.new_zeros(len(images), self.num_classes, height, width)
        count = images.new_zeros(height, width)
        for top in starts(height, window, stride):
            for left in starts(width, window, stride):
                rows, columns = slice(top, top + window), slice(left, left + window)
                total[:, :, rows, columns] += self._logits(images[:, :, rows, columns])
                count[rows, columns] += 1
        return total / count

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters, besides norms and biases, that are not decayed."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: ARG002 - timm's signature
        """timm's description of layer groups, for layer-wise learning rates."""
        return self.backbone.group_matcher("backbone")


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows start on an axis so that they cover all of it."""
    if length <= window:
        return [0]
    return [*range(0, length - window, stride), length - window]
