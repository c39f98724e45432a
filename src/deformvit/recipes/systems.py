"""Detection and segmentation runs: the paper's schedules on COCO and ADE20K, and small ones for two CPU cores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from deformvit.config import (
    DetectionConfig,
    DetectionDataConfig,
    DetectorConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    SegmentationConfig,
    SegmentationDataConfig,
    SegmenterConfig,
)

DROP_PATH = {"tiny": 0.2, "small": 0.3, "base": 0.5}
"""Rates of the classification recipes; the paper does not state those of its detectors."""
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
NANO = "dat_nano.cifar10"

Detectors = Literal["retinanet", "mask_rcnn", "cascade_mask_rcnn"]
Segmenters = Literal["semantic_fpn", "upernet"]


def detection(system: Detectors, size: str, schedule: Literal["1x", "3x"]) -> DetectionConfig:
    """The paper's schedules on COCO (section 4.2), with Swin's settings. Set data.root and model.checkpoint."""
    is_long = schedule == "3x"
    return DetectionConfig(
        model=ModelConfig(name=f"dat_{size}", drop_path_rate=DROP_PATH[size]),
        data=DetectionDataConfig(
            batch_size=16, workers=4, min_size=tuple(range(480, 801, 32)) if is_long else (800,), max_size=1333,
            eval_size=800, crop="branch" if is_long else "none",
        ),
        head=DetectorConfig(
            system=system, box_head="4conv1fc" if system == "cascade_mask_rcnn" else "2fc", class_agnostic=False,
        ),
        optim=OptimConfig(
            lr=1e-4, lr_batch=16, schedule="steps", milestones=(27, 33) if is_long else (8, 11), warmup_lr=1e-7,
            warmup_steps=500, weight_decay=0.05, clip_grad=0.0,
        ),
        run=RunConfig(
            epochs=36 if is_long else 12, amp="bf16", output=Path("runs") / f"{system}_dat_{size}_{schedule}"
        ),
    )  # fmt: skip


def segmentation(system: Segmenters, size: str) -> SegmentationConfig:
    """The paper's schedules on ADE20K (section 4.3). Set data.root and model.checkpoint."""
    upernet = system == "upernet"
    return SegmentationConfig(
        model=ModelConfig(name=f"dat_{size}", drop_path_rate=0.5 if size == "base" else 0.3),
        data=SegmentationDataConfig(batch_size=16, workers=4, scale=(512, 2048), crop_size=512),
        head=SegmenterConfig(system=system),
        optim=OptimConfig(
            lr=6e-5 if upernet else 2e-4, lr_batch=16, schedule="poly", power=1.0 if upernet else 0.9, min_lr=0.0,
            warmup_lr=6e-11 if upernet else 2e-4, warmup_epochs=0.0, warmup_steps=1500 if upernet else 0,
            weight_decay=0.01 if upernet else 1e-4, clip_grad=0.0,
        ),
        run=RunConfig(
            steps=160_000 if upernet else 40_000, amp="bf16", eval_every=10,
            output=Path("runs") / f"{system}_dat_{size}",
        ),
    )  # fmt: skip


def _nano_detection(system: Detectors, data: str) -> DetectionConfig:
    """A small detector on dat_nano; its maps have strides 2, 4, 8, 16."""
    return DetectionConfig(
        model=ModelConfig(name="dat_nano", checkpoint=NANO, drop_path_rate=0.1),
        data=DetectionDataConfig(root=data, batch_size=4, workers=0, mean=CIFAR_MEAN, std=CIFAR_STD, color=True),
        head=DetectorConfig(
            system=system, channels=64, box_channels=256, rois=128, proposals=500, stages=(2, 3, 4),
            box_head="4conv1fc" if system == "cascade_mask_rcnn" else "2fc",
        ),
        optim=OptimConfig(
            lr=4e-4, lr_batch=0, schedule="cosine", min_lr=1e-6, warmup_lr=1e-6, warmup_epochs=1.0, weight_decay=0.05,
            clip_grad=1.0,
        ),
        run=RunConfig(epochs=14, eval_every=7, output=Path("runs") / f"{system}_dat_nano_{data}"),
    )  # fmt: skip


def _nuclei(system: Detectors) -> DetectionConfig:
    config = _nano_detection(system, "nuclei")
    data = config.data
    data.min_size, data.max_size, data.crop, data.crop_size = (256, 320, 384, 448), 1400, "square", 160
    data.eval_size = 384
    data.vflip = 0.5
    config.head.anchor_scale = 4.0  # half of the nuclei are smaller than 20 pixels
    config.head.detections = 300  # an image holds up to 370
    return config


def _camvid(system: Segmenters) -> SegmentationConfig:
    return SegmentationConfig(
        model=ModelConfig(name="dat_nano", checkpoint=NANO, drop_path_rate=0.1),
        data=SegmentationDataConfig(
            root="camvid", batch_size=6, workers=0, scale=(180, 240), ratio_range=(0.8, 1.5), crop_size=160,
            mean=CIFAR_MEAN, std=CIFAR_STD, reduce_zero_label=False,
        ),
        head=SegmenterConfig(system=system, channels=64),
        optim=OptimConfig(
            lr=6e-4, lr_batch=0, schedule="poly", power=1.0, min_lr=0.0, warmup_lr=1e-6, warmup_epochs=1.0,
            weight_decay=0.05, clip_grad=1.0,
        ),
        run=RunConfig(epochs=25, eval_every=5, output=Path("runs") / f"{system}_dat_nano_camvid"),
    )  # fmt: skip


def _own_detection(system: Detectors, output: str) -> DetectionConfig:
    """On somebody's own images: sizes and epochs follow from them; longer sides of up to 320 pixels suit a CPU."""
    config = _nano_detection(system, "coco")
    config.data.max_size, config.data.workers = 320, 2
    config.run.epochs, config.run.eval_every, config.run.output = 0, 1, Path("runs") / output
    return config


def detect() -> DetectionConfig:
    """RetinaNet on dat_nano for your own images with boxes in COCO's format; set data.root. Sizes and epochs follow the
    images."""
    return _own_detection("retinanet", "detect")


def detect_masks() -> DetectionConfig:
    """Mask R-CNN on dat_nano for your own images with masks in COCO's format; set data.root. Sizes and epochs follow
    the images."""
    return _own_detection("mask_rcnn", "detect_masks")


def segment() -> SegmentationConfig:
    """Semantic FPN on dat_nano for your own images with a class for every pixel; set data.root. Sizes and epochs follow
    the images."""
    config = _camvid("semantic_fpn")
    config.data.root, config.data.workers = "labelled", 2
    config.data.scale, config.data.crop_size = (0, 0), 192  # suits a CPU
    config.run.epochs, config.run.eval_every, config.run.output = 0, 1, Path("runs/segment")
    return config


def mask_rcnn_dat_nano_nuclei() -> DetectionConfig:
    """Mask R-CNN on dat_nano for cell nuclei, on two CPU cores; set data.root."""
    return _nuclei("mask_rcnn")


def cascade_mask_rcnn_dat_nano_nuclei() -> DetectionConfig:
    """Cascade Mask R-CNN on dat_nano for cell nuclei, on two CPU cores; set data.root."""
    return _nuclei("cascade_mask_rcnn")


def retinanet_dat_nano_bccd() -> DetectionConfig:
    """RetinaNet on dat_nano for blood cells, on two CPU cores; set data.root."""
    config = _nano_detection("retinanet", "bccd")
    config.data.min_size, config.data.max_size, config.data.eval_size = (144, 160, 192), 320, 160
    config.data.vflip = 0.5
    config.run.epochs = 20
    config.run.eval_every = 5
    return config


def upernet_dat_nano_camvid() -> SegmentationConfig:
    """UperNet on dat_nano for street scenes, on two CPU cores; set data.root."""
    return _camvid("upernet")


def semantic_fpn_dat_nano_camvid() -> SegmentationConfig:
    """Semantic FPN on dat_nano for street scenes, on two CPU cores; set data.root."""
    return _camvid("semantic_fpn")


PUBLISHED = {
    ("retinanet", "tiny", "1x"): "42.8 box AP", ("retinanet", "tiny", "3x"): "45.6 box AP",
    ("retinanet", "small", "1x"): "45.7 box AP", ("retinanet", "small", "3x"): "47.9 box AP",
    ("mask_rcnn", "tiny", "1x"): "44.4 box, 40.4 mask AP", ("mask_rcnn", "tiny", "3x"): "47.1 box, 42.4 mask AP",
    ("mask_rcnn", "small", "1x"): "47.1 box, 42.5 mask AP", ("mask_rcnn", "small", "3x"): "49.0 box, 44.0 mask AP",
    ("cascade_mask_rcnn", "tiny", "1x"): "49.1 box, 42.5 mask AP",
    ("cascade_mask_rcnn", "tiny", "3x"): "51.3 box, 44.5 mask AP",
    ("cascade_mask_rcnn", "small", "3x"): "52.7 box, 45.5 mask AP",
    ("cascade_mask_rcnn", "base", "3x"): "53.0 box, 45.8 mask AP",
    ("semantic_fpn", "tiny", ""): "42.56 mIoU", ("semantic_fpn", "small", ""): "46.08 mIoU",
    ("semantic_fpn", "base", ""): "47.02 mIoU", ("upernet", "tiny", ""): "45.54 mIoU",
    ("upernet", "small", ""): "48.31 mIoU", ("upernet", "base", ""): "49.38 mIoU",
}  # fmt: skip
"""The paper's systems by head, backbone and schedule, and their published results (Tables 3, 4 and 5)."""

TITLES = {
    "retinanet": "RetinaNet", "mask_rcnn": "Mask R-CNN", "cascade_mask_rcnn": "Cascade Mask R-CNN",
    "semantic_fpn": "Semantic FPN", "upernet": "UperNet",
}  # fmt: skip


def _published(system: str, size: str, schedule: str) -> tuple[str, Callable[[], DetectionConfig | SegmentationConfig]]:
    def recipe() -> DetectionConfig | SegmentationConfig:
        if schedule:
            return detection(system, size, schedule)  # type: ignore[arg-type]
        return segmentation(system, size)  # type: ignore[arg-type]

    data = f"COCO, {schedule}" if schedule else "ADE20K"
    recipe.__doc__ = (
        f"{TITLES[system]} on DAT-{size[0].upper()}, {data} (paper: {PUBLISHED[system, size, schedule]}); "
        "set data.root and model.checkpoint."
    )
    return "-".join(filter(None, (system.replace("_", "-"), "dat", size, schedule))), recipe


ALL: dict[str, Callable[[], DetectionConfig | SegmentationConfig]] = {
    recipe.__name__.replace("_", "-"): recipe
    for recipe in (
        detect, detect_masks, segment, mask_rcnn_dat_nano_nuclei, cascade_mask_rcnn_dat_nano_nuclei,
        retinanet_dat_nano_bccd, upernet_dat_nano_camvid, semantic_fpn_dat_nano_camvid,
    )
} | dict(_published(*key) for key in PUBLISHED)  # fmt: skip
"""Recipes by their names on the command line."""
