"""Tables 3, 4 and 5: detectors on COCO and segmentation networks on ADE20K."""

from __future__ import annotations

from deformvit.paper.tables.types import ADE20K, COCO, Column, Row, Table

_COCO_IMAGE = (800, 1280)
_KEYS = (
    "Multiply-adds are those of the classification models' key grid (r = 1), and of keys at every second row and "
    'column of stages 3 and 4 (r = 2, --model.args stride "(1, 1, 2, 2)"). With r = 2 the paper\'s counts come out to '
    "within "
)
_UNSTATED = "; the paper does not state it."
_REGIONS = "Counted with 1,000 regions in box heads and 100 in mask heads, as mmdetection's counter does."

TABLES: dict[str, Table] = {
    "3": Table(
        "Table 3: RetinaNet on COCO, 1280 x 800",
        COCO,
        (
            Row(
                "DAT-T 1x", recipe="retinanet-dat-tiny-1x", params="38", mult_adds="253",
                results=("42.8", "64.4", "45.2", "28.0", "45.8", "57.8"),
            ),
            Row(
                "DAT-T 3x", recipe="retinanet-dat-tiny-3x", params="38", mult_adds="253",
                results=("45.6", "67.2", "48.5", "31.3", "49.1", "60.8"),
            ),
            Row(
                "DAT-S 1x", recipe="retinanet-dat-small-1x", params="60", mult_adds="359",
                results=("45.7", "67.7", "48.5", "30.5", "49.3", "61.3"),
            ),
            Row(
                "DAT-S 3x", recipe="retinanet-dat-small-3x", params="60", mult_adds="359",
                results=("47.9", "69.6", "51.2", "32.3", "51.8", "63.4"),
            ),
            Row("Swin-T 1x", results=("41.7",)),
            Row("Swin-T 3x", results=("44.8",)),
            Row("Swin-S 1x", results=("44.5",)),
            Row("Swin-S 3x", results=("47.3",)),
            Row("PVT-S 1x", results=("40.4",)),
            Row("PVT-S 3x", results=("42.3",)),
        ),
        (
            Column("AP", "box_AP"), Column("AP50", "box_AP50"), Column("AP75", "box_AP75"), Column("APs", "box_APs"),
            Column("APm", "box_APm"), Column("APl", "box_APl"),
        ),
        note=f"{_KEYS}2 %{_UNSTATED}",
        image=_COCO_IMAGE,
        strided_keys=True,
    ),
    "4": Table(
        "Table 4: Mask R-CNN and Cascade Mask R-CNN on COCO, 1280 x 800",
        COCO,
        (
            Row(
                "Mask R-CNN DAT-T 1x", recipe="mask-rcnn-dat-tiny-1x", params="48", mult_adds="272",
                results=("44.4", "67.6", "48.5", "40.4", "64.2", "43.1"),
            ),
            Row(
                "Mask R-CNN DAT-T 3x", recipe="mask-rcnn-dat-tiny-3x", params="48", mult_adds="272",
                results=("47.1", "69.2", "51.6", "42.4", "66.1", "45.5"),
            ),
            Row(
                "Mask R-CNN DAT-S 1x", recipe="mask-rcnn-dat-small-1x", params="69", mult_adds="378",
                results=("47.1", "69.9", "51.5", "42.5", "66.7", "45.4"),
            ),
            Row(
                "Mask R-CNN DAT-S 3x", recipe="mask-rcnn-dat-small-3x", params="69", mult_adds="378",
                results=("49.0", "70.9", "53.8", "44.0", "68.0", "47.5"),
            ),
            Row(
                "Cascade DAT-T 1x", recipe="cascade-mask-rcnn-dat-tiny-1x", params="86", mult_adds="750",
                results=("49.1", "68.2", "52.9", "42.5", "65.4", "45.8"),
            ),
            Row(
                "Cascade DAT-T 3x", recipe="cascade-mask-rcnn-dat-tiny-3x", params="86", mult_adds="750",
                results=("51.3", "70.1", "55.8", "44.5", "67.5", "48.1"),
            ),
            Row(
                "Cascade DAT-S 3x", recipe="cascade-mask-rcnn-dat-small-3x", params="107", mult_adds="857",
                results=("52.7", "71.7", "57.2", "45.5", "69.1", "49.3"),
            ),
            Row(
                "Cascade DAT-B 3x", recipe="cascade-mask-rcnn-dat-base-3x", params="145", mult_adds="1003",
                results=("53.0", "71.9", "57.6", "45.8", "69.3", "49.5"),
            ),
            Row("Mask R-CNN Swin-T 1x", results=("43.7",)),
            Row("Mask R-CNN Swin-T 3x", results=("46.0",)),
            Row("Mask R-CNN Swin-S 1x", results=("45.7",)),
            Row("Mask R-CNN Swin-S 3x", results=("48.5",)),
            Row("Cascade Swin-T 1x", results=("48.1",)),
            Row("Cascade Swin-T 3x", results=("50.4",)),
            Row("Cascade Swin-S 3x", results=("51.9",)),
            Row("Cascade Swin-B 3x", results=("51.9",)),
        ),
        (
            Column("box AP", "box_AP"), Column("AP50", "box_AP50"), Column("AP75", "box_AP75"),
            Column("mask AP", "mask_AP"), Column("AP50", "mask_AP50"), Column("AP75", "mask_AP75"),
        ),
        note=f"{_REGIONS} The published parameters of the cascade are those of a box for every class. {_KEYS}2 %"
        f"{_UNSTATED}",
        image=_COCO_IMAGE,
        strided_keys=True,
    ),
    "5": Table(
        "Table 5: Semantic FPN and UperNet on ADE20K, 512 x 2048",
        ADE20K,
        (
            Row(
                "Semantic FPN DAT-T", recipe="semantic-fpn-dat-tiny", params="32", mult_adds="198",
                results=("42.56", "54.72", "44.22"),
            ),
            Row(
                "Semantic FPN DAT-S", recipe="semantic-fpn-dat-small", params="53", mult_adds="320",
                results=("46.08", "58.17", "48.46"),
            ),
            Row(
                "Semantic FPN DAT-B", recipe="semantic-fpn-dat-base", params="92", mult_adds="481",
                results=("47.02", "59.47", "49.01"),
            ),
            Row(
                "UperNet DAT-T", recipe="upernet-dat-tiny", params="60", mult_adds="957",
                results=("45.54", "57.95", "46.44"),
            ),
            Row(
                "UperNet DAT-S", recipe="upernet-dat-small", params="81", mult_adds="1079",
                results=("48.31", "60.44", "49.84"),
            ),
            Row(
                "UperNet DAT-B", recipe="upernet-dat-base", params="121", mult_adds="1212",
                results=("49.38", "61.82", "50.55"),
            ),
            Row("Semantic FPN PVT-S", results=("41.95",)),
            Row("Semantic FPN PVT-M", results=("42.91",)),
            Row("Semantic FPN PVT-L", results=("43.49",)),
            Row("UperNet Swin-T", results=("44.51",)),
            Row("UperNet Swin-S", results=("47.64",)),
            Row("UperNet Swin-B", results=("48.13",)),
        ),
        (Column("mIoU", "mIoU"), Column("mAcc", "mAcc"), Column("mIoU multi-scale")),
        note=f"UperNet's auxiliary head is counted. {_KEYS}2 % for UperNet and 8 % for Semantic FPN{_UNSTATED}",
        image=(512, 2048),
        strided_keys=True,
    ),
}  # fmt: skip
