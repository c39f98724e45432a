"""The paper's ImageNet tables as data: every row a model of ours in one line of configuration, with what was published.

``deformvit table NUMBER`` prints them beside what is measured. Rows train with
``deformvit train dat-tiny-imagenet --model.args ...``, the arguments being the row's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_WINDOWS, _DEFORMABLE, _DETR = "window shifted", "window deformable", "window deformable_detr"


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    label: str
    model: str = ""
    """Name registered with timm; empty where only published values are known."""
    args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the model: the row's configuration."""
    params: str = ""
    """Published millions of parameters, in the paper's digits."""
    flops: str = ""
    """Published billions of multiply-adds, in the paper's digits."""
    top1: str = ""
    """Published ImageNet-1K top-1 accuracy in percent."""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table or figure of the paper."""

    title: str
    rows: tuple[Row, ...]
    note: str = ""


_SWIN: dict[str, Any] = {"blocks": (_WINDOWS,) * 4, "shifting": "swin", "downsample": "merging"}
_UNUSED = (
    "the paper counts the unused offset network, and no sampling of features and table at undeformed points: without "
    "it ours has 4.57 G"
)

TABLES: dict[str, Table] = {
    "2": Table(
        "Table 2: ImageNet-1K classification",
        (
            Row("DAT-T", "dat_tiny", {}, "29", "4.6", "82.0", "28,319,138 parameters, as released"),
            Row("DAT-S", "dat_small", {}, "50", "9.0", "83.7"),
            Row("DAT-B", "dat_base", {}, "88", "15.8", "84.0"),
            Row("DAT-B 384", "dat_base_384", {}, "88", "49.8", "84.8"),
            Row("DAT-T++", "datpp_tiny", {}, "24", "4.3", "83.9"),
            Row("DAT-S++", "datpp_small", {}, "53", "9.4", "84.6"),
            Row(
                "DAT-B++",
                "datpp_base",
                {},
                "93",
                "16.6",
                "84.9",
                "93,690,640 parameters, equal to the released model's; the paper cuts where it should round",
            ),
            Row("DAT-B++ 384", "datpp_base_384", {}, "", "49.7", "85.9"),
            Row(
                "Swin-T",
                "swin_tiny_patch4_window7_224",
                {},
                "29",
                "4.5",
                "81.3",
                "28,288,354 parameters; the paper prints 29",
            ),
            Row("Swin-S", "swin_small_patch4_window7_224", {}, "50", "8.8", "83.0"),
            Row("Swin-B", "swin_base_patch4_window7_224", {}, "88", "15.5", "83.5"),
            Row("Swin-B 384", "swin_base_patch4_window12_384", {}, "88", "47.2", "84.5"),
            Row("DeiT-S", "deit_small_patch16_224", top1="79.8"),
            Row("DeiT-B", "deit_base_patch16_224", top1="81.8"),
            Row("PVT-S", top1="79.8"),
            Row("PVT-M", top1="81.2"),
            Row("PVT-L", top1="81.7"),
            Row("DPT-S", top1="81.0"),
            Row("DPT-M", top1="81.9"),
            Row("GLiT-S", top1="80.5"),
            Row("GLiT-B", top1="82.3"),
        ),
        "DAT++ rows are those of arXiv 2309.01430.",
    ),
    "6": Table(
        "Table 6: attention of stages 1-2, offsets and position embedding (DAT-T)",
        (
            Row(
                "shifted window, no offsets, no position",
                "dat_tiny",
                {"offsets": False, "position": "none"},
                "28.29",
                "4.57",
                "81.4",
                _UNUSED,
            ),
            Row(
                "shifted window, no offsets, relative", "dat_tiny", {"offsets": False}, "28.32", "4.57", "81.7", _UNUSED
            ),
            Row("shifted window, offsets, no position", "dat_tiny", {"position": "none"}, "28.29", "4.58", "81.7"),
            Row("shifted window, offsets, fixed", "dat_tiny", {"position": "fixed"}, "29.73", "4.58", "81.8"),
            Row("shifted window, offsets, dwconv", "dat_tiny", {"position": "dwconv"}, "28.31", "4.59", "81.8"),
            Row(
                "spatial reduction, offsets, relative",
                "dat_tiny",
                {"blocks": ("reduction",) * 2 + (_DEFORMABLE,) * 2},
                "30.68",
                "4.48",
                "81.7",
            ),
            Row("shifted window, offsets, relative", "dat_tiny", {}, "28.32", "4.59", "82.0"),
        ),
    ),
    "7": Table(
        "Table 7: stages with deformable attention (DAT-T)",
        (
            Row(
                "1, 2, 3, 4",
                "dat_tiny",
                {"blocks": (_DEFORMABLE,) * 4, "stride": (4, 2, 1, 1)},
                "28.39",
                "4.64",
                "81.7",
            ),
            Row(
                "2, 3, 4",
                "dat_tiny",
                {"blocks": (_WINDOWS, *(_DEFORMABLE,) * 3), "stride": (1, 2, 1, 1)},
                "28.34",
                "4.60",
                "81.9",
            ),
            Row("3, 4", "dat_tiny", {}, "28.32", "4.59", "82.0"),
            Row("4", "dat_tiny", {"blocks": (*(_WINDOWS,) * 3, _DEFORMABLE)}, "28.29", "4.51", "81.4"),
            Row("none: Swin-T", "dat_tiny", _SWIN, "", "", "81.3"),
        ),
        "The paper prints neither groups nor strides of stages 1 and 2: groups 1, 2 are the ones that give its "
        "parameter counts, strides 4, 2 those that give its multiply-adds.",
    ),
    "8": Table(
        "Table 8: Deformable DETR's attention in place of deformable attention (DAT-T)",
        (
            Row("Deformable DETR, 16 keys", "dat_tiny", {"blocks": (_WINDOWS,) * 2 + (_DETR,) * 2, "points": 16}),
            Row(
                "Deformable DETR, as many keys as DAT",
                "dat_tiny",
                {"blocks": (_WINDOWS,) * 2 + (_DETR,) * 2, "points": (1, 1, 196, 49)},
            ),
            Row("DAT-T", "dat_tiny", {}, "28.32", "4.59", "82.0"),
        ),
        "Published, relative to DAT: 16 keys less memory and lower accuracy; as many keys 2.6 times the memory, 1.3 "
        "times the multiply-adds, and still lower accuracy.",
    ),
    "9": Table(
        "Table 9: overlapped convolutions for patch embedding and downsampling",
        (
            Row("DAT-T", "dat_tiny", {}, "28.32", "4.59", "82.0"),
            Row("DAT-T, overlapped", "dat_tiny", {"embed": "conv"}),
            Row("DAT-T, stacked stem of DAT++", "dat_tiny", {"embed": "stacked"}),
            Row("Swin-T", "dat_tiny", _SWIN, "", "", "81.3"),
            Row("Swin-T, overlapped", "dat_tiny", {**_SWIN, "embed": "conv", "downsample": "conv"}),
        ),
        "Published: overlapped embeddings improve every model; the digits are not in our copy of the paper.",
    ),
    "fig4": Table(
        "Figure 4: the offset range s (DAT-T), top-1 read off the plot to 0.02",
        tuple(
            Row(f"s = {s}", "dat_tiny", {"offset_range": float(s)}, "", "", top1)
            for s, top1 in (
                (0, "81.70"),
                (1, "81.89"),
                (2, "82.04"),
                (3, "81.94"),
                (4, "81.90"),
                (5, "81.99"),
                (6, "81.96"),
                (8, "82.07"),
                (9, "81.87"),
                (10, "82.00"),
                (11, "81.93"),
                (12, "81.90"),
                (14, "81.16"),
                (16, "80.63"),
            )
        ),
        "s = 0 has no offset network: a table sampled at the displacements of the undeformed grid.",
    ),
    "neighbours": Table(
        "What the paper measures itself against, in DAT-T's place",
        (
            Row("DAT-T", "dat_tiny", {}, "28.32", "4.59", "82.0"),
            Row("Swin-T: shifted windows in all stages", "dat_tiny", _SWIN, "", "", "81.3"),
            Row("PVT's spatial reduction in all stages", "dat_tiny", {"blocks": ("reduction",) * 4}),
            Row(
                "Swin-T with DPT's deformable patches between stages", "dat_tiny", {**_SWIN, "downsample": "deformable"}
            ),
            Row("DAT-T with DPT's deformable patches between stages", "dat_tiny", {"downsample": "deformable"}),
        ),
        "Rows without published values are not the paper's.",
    ),
}
