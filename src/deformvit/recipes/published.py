"""Tables 3, 4 and 5 as data: the paper's detectors and segmentation networks, with what it reports of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class System:
    """One line of Tables 3 to 5: a system on a backbone."""

    label: str
    recipe: str = ""
    """Recipe that trains it; empty for what is not ours."""
    params: str = ""
    """Published millions of parameters."""
    flops: str = ""
    """Published billions of multiply-adds."""
    results: tuple[str, ...] = ()
    """Published values in the columns of the table."""


@dataclass(frozen=True)
class DenseTable:
    """A table of dense prediction."""

    title: str
    size: tuple[int, int]
    """(H, W) of the image that is counted."""
    classes: int
    columns: tuple[str, ...]
    """Measured metrics, by their names in ``metrics.jsonl``, and the paper's words for them."""
    metrics: tuple[str, ...]
    rows: tuple[System, ...]
    note: str = ""


_BOXES = ("box_AP", "box_AP50", "box_AP75")
_MASKS = ("mask_AP", "mask_AP50", "mask_AP75")
_KEYS = (
    "r = 1 is the classification models' key grid. The paper's counts come out, to within 2 %, with keys at every "
    'second row and column of stages 3 and 4 (r = 2, --model.args stride "(1, 1, 2, 2)"); it does not say so.'
)
_REGIONS = "Counted with 1,000 regions in box heads and 100 in mask heads, as mmdetection's counter does."

DENSE_TABLES: dict[str, DenseTable] = {
    "3": DenseTable(
        "Table 3: RetinaNet on COCO, 1280 x 800",
        (800, 1280),
        80,
        ("AP", "AP50", "AP75", "APs", "APm", "APl"),
        (*_BOXES, "box_APs", "box_APm", "box_APl"),
        (
            System("DAT-T 1x", "retinanet-dat-tiny-1x", "38", "253", ("42.8", "64.4", "45.2", "28.0", "45.8", "57.8")),
            System("DAT-T 3x", "retinanet-dat-tiny-3x", "38", "253", ("45.6", "67.2", "48.5", "31.3", "49.1", "60.8")),
            System("DAT-S 1x", "retinanet-dat-small-1x", "60", "359", ("45.7", "67.7", "48.5", "30.5", "49.3", "61.3")),
            System("DAT-S 3x", "retinanet-dat-small-3x", "60", "359", ("47.9", "69.6", "51.2", "32.3", "51.8", "63.4")),
            System("Swin-T 1x", results=("41.7",)),
            System("Swin-T 3x", results=("44.8",)),
            System("Swin-S 1x", results=("44.5",)),
            System("Swin-S 3x", results=("47.3",)),
            System("PVT-S 1x", results=("40.4",)),
            System("PVT-S 3x", results=("42.3",)),
        ),
        _KEYS,
    ),
    "4": DenseTable(
        "Table 4: Mask R-CNN and Cascade Mask R-CNN on COCO, 1280 x 800",
        (800, 1280),
        80,
        ("box AP", "AP50", "AP75", "mask AP", "AP50", "AP75"),
        (*_BOXES, *_MASKS),
        (
            System(
                "Mask R-CNN DAT-T 1x", "mask-rcnn-dat-tiny-1x", "48", "272",
                ("44.4", "67.6", "48.5", "40.4", "64.2", "43.1"),
            ),
            System(
                "Mask R-CNN DAT-T 3x", "mask-rcnn-dat-tiny-3x", "48", "272",
                ("47.1", "69.2", "51.6", "42.4", "66.1", "45.5"),
            ),
            System(
                "Mask R-CNN DAT-S 1x", "mask-rcnn-dat-small-1x", "69", "378",
                ("47.1", "69.9", "51.5", "42.5", "66.7", "45.4"),
            ),
            System(
                "Mask R-CNN DAT-S 3x", "mask-rcnn-dat-small-3x", "69", "378",
                ("49.0", "70.9", "53.8", "44.0", "68.0", "47.5"),
            ),
            System(
                "Cascade DAT-T 1x", "cascade-mask-rcnn-dat-tiny-1x", "86", "750",
                ("49.1", "68.2", "52.9", "42.5", "65.4", "45.8"),
            ),
            System(
                "Cascade DAT-T 3x", "cascade-mask-rcnn-dat-tiny-3x", "86", "750",
                ("51.3", "70.1", "55.8", "44.5", "67.5", "48.1"),
            ),
            System(
                "Cascade DAT-S 3x", "cascade-mask-rcnn-dat-small-3x", "107", "857",
                ("52.7", "71.7", "57.2", "45.5", "69.1", "49.3"),
            ),
            System(
                "Cascade DAT-B 3x", "cascade-mask-rcnn-dat-base-3x", "145", "1003",
                ("53.0", "71.9", "57.6", "45.8", "69.3", "49.5"),
            ),
            System("Mask R-CNN Swin-T 1x", results=("43.7",)),
            System("Mask R-CNN Swin-T 3x", results=("46.0",)),
            System("Mask R-CNN Swin-S 1x", results=("45.7",)),
            System("Mask R-CNN Swin-S 3x", results=("48.5",)),
            System("Cascade Swin-T 1x", results=("48.1",)),
            System("Cascade Swin-T 3x", results=("50.4",)),
            System("Cascade Swin-S 3x", results=("51.9",)),
            System("Cascade Swin-B 3x", results=("51.9",)),
        ),
        f"{_REGIONS} The published parameters of the cascade are those of a box for every class. {_KEYS}",
    ),
    "5": DenseTable(
        "Table 5: Semantic FPN and UperNet on ADE20K, 512 x 2048",
        (512, 2048),
        150,
        ("mIoU", "mAcc", "mIoU multi-scale"),
        ("mIoU", "mAcc"),
        (
            System("Semantic FPN DAT-T", "semantic-fpn-dat-tiny", "32", "198", ("42.56", "54.72", "44.22")),
            System("Semantic FPN DAT-S", "semantic-fpn-dat-small", "53", "320", ("46.08", "58.17", "48.46")),
            System("Semantic FPN DAT-B", "semantic-fpn-dat-base", "92", "481", ("47.02", "59.47", "49.01")),
            System("UperNet DAT-T", "upernet-dat-tiny", "60", "957", ("45.54", "57.95", "46.44")),
            System("UperNet DAT-S", "upernet-dat-small", "81", "1079", ("48.31", "60.44", "49.84")),
            System("UperNet DAT-B", "upernet-dat-base", "121", "1212", ("49.38", "61.82", "50.55")),
            System("Semantic FPN PVT-S", results=("41.95",)),
            System("Semantic FPN PVT-M", results=("42.91",)),
            System("Semantic FPN PVT-L", results=("43.49",)),
            System("UperNet Swin-T", results=("44.51",)),
            System("UperNet Swin-S", results=("47.64",)),
            System("UperNet Swin-B", results=("48.13",)),
        ),
        f"UperNet's auxiliary head is counted. {_KEYS}",
    ),
}  # fmt: skip
