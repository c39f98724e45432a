"""The comparison and ablations at the size of dat_nano, for CIFAR-10 and a CPU; ``deformvit ablate`` trains them.

Rows of a table are trained by the same recipe and have, within 5 %, the same parameters and multiply-adds.
"""

from __future__ import annotations

from typing import Any

from deformvit.paper.tables.types import CIFAR10, Row, Table

_D, _S = "window deformable", "window shifted"
_SWIN: dict[str, Any] = {"blocks": ("window", _S, _S, "shifted"), "shifting": "swin"}
_DEIT: dict[str, Any] = {
    "img_size": 32, "patch_size": 8, "embed_dim": 184, "depth": 5, "num_heads": 4, "class_token": False,
    "global_pool": "avg",
}  # fmt: skip
_IMAGE = (32, 32)

TABLES: dict[str, Table] = {
    "main": Table(
        "Attention that deforms against its neighbours, at dat_nano's size",
        CIFAR10,
        (
            Row("DAT", "dat_nano"),
            Row("Swin: shifted windows", "dat_nano", _SWIN),
            Row("PVT: spatial reduction", "dat_nano", {"blocks": ("reduction",) * 4, "reduction": (2, 1, 1, 1)}),
            Row(
                "Deformable DETR's attention", "dat_nano",
                {"blocks": ("window", *("window deformable_detr",) * 2, "deformable_detr")},
            ),
            Row("DeiT: global attention, one scale", "deit_tiny_patch16_224", _DEIT),
        ),
        note="DeiT has patches of 8 pixels: with smaller ones it has the parameters, but several times the "
        "multiply-adds.",
        image=_IMAGE,
    ),
    "6": Table(
        "Table 6 at dat_nano's size: attention of stage 1, offsets and position embedding",
        CIFAR10,
        (
            Row("window, no offsets, no position", "dat_nano", {"offsets": False, "position": "none"}),
            Row("window, no offsets, relative", "dat_nano", {"offsets": False}),
            Row("window, offsets, no position", "dat_nano", {"position": "none"}),
            Row("window, offsets, fixed", "dat_nano", {"position": "fixed"}),
            Row("window, offsets, dwconv", "dat_nano", {"position": "dwconv"}),
            Row(
                "spatial reduction, offsets, relative", "dat_nano",
                {"blocks": ("reduction", _D, _D, "deformable"), "reduction": (4, 1, 1, 1)},
            ),
            Row("window, offsets, relative", "dat_nano"),
        ),
        image=_IMAGE,
    ),
    "7": Table(
        "Table 7 at dat_nano's size: stages with deformable attention",
        CIFAR10,
        (
            Row("1, 2, 3, 4", "dat_nano", {"blocks": ("deformable", _D, _D, "deformable"), "stride": (2, 1, 1, 1)}),
            Row("2, 3, 4", "dat_nano"),
            Row("3, 4", "dat_nano", {"blocks": ("window", _S, _D, "deformable")}),
            Row("4", "dat_nano", {"blocks": ("window", _S, _S, "deformable")}),
            Row("none: Swin", "dat_nano", _SWIN),
        ),
        image=_IMAGE,
    ),
    "fig4": Table(
        "Figure 4 at dat_nano's size: the offset range s",
        CIFAR10,
        tuple(Row(f"s = {s}", "dat_nano", {"offset_range": float(s)}) for s in (0, 1, 2, 3, 4, 6, 8, 12, 16)),
        note="s = 0 has no offset network.",
        image=_IMAGE,
    ),
}  # fmt: skip
