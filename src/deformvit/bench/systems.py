"""Detectors and segmentation networks, with the automatic implementation of attention and with the reference."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_type_hints

import torch
from tqdm import tqdm

from deformvit.bench.measure import DTYPES, TimedModel, machine, summary
from deformvit.bench.worker import Worker
from deformvit.config import DetectionConfig, DetectorConfig, SegmentationConfig, SegmenterConfig
from deformvit.devices import pick_device
from deformvit.errors import UserError
from deformvit.ops import attention_impl
from deformvit.systems import build_detector, build_segmenter

DETECTORS: tuple[str, ...] = get_args(get_type_hints(DetectorConfig)["system"])
SEGMENTERS: tuple[str, ...] = get_args(get_type_hints(SegmenterConfig)["system"])
OBJECTS = 20
"""Objects in the image of a training step."""


class SystemRun(TimedModel):
    """One image through one system: inference, or a training step without the optimiser."""

    def __init__(self, job: dict[str, Any]) -> None:
        torch.manual_seed(0)
        self.device, dtype = torch.device(job["device"]), DTYPES[job["dtype"]]
        self.attention = job["attention"]
        self.detects = job["system"] in DETECTORS
        height, width = job["size"]
        if self.detects:
            config = DetectionConfig(head=DetectorConfig(system=job["system"]))
            config.head.box_head = "4conv1fc" if job["system"] == "cascade_mask_rcnn" else "2fc"
            config.data.eval_size, config.data.max_size = min(height, width), max(height, width)
            config.model.name = job["name"]
            self.model = build_detector(config, 80)
        else:
            segmentation = SegmentationConfig(head=SegmenterConfig(system=job["system"]))
            segmentation.data.scale = (min(height, width), max(height, width))
            segmentation.model.name = job["name"]
            self.model = build_segmenter(segmentation, 150)
        self.model.to(self.device).train(job["backward"])
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.autocast = torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)
        self.backward = job["backward"]
        self.image = torch.rand(3, height, width, device=self.device)
        corner = torch.rand(OBJECTS, 2, device=self.device) * torch.tensor([width, height], device=self.device) * 0.7
        masks = torch.zeros(OBJECTS, height, width, dtype=torch.uint8, device=self.device)
        boxes = torch.cat([corner, corner + min(height, width) * 0.25], 1)
        for mask, box in zip(masks, boxes.long().tolist(), strict=True):
            mask[box[1] : box[3], box[0] : box[2]] = 1
        self.target = {"boxes": boxes, "labels": torch.arange(OBJECTS, device=self.device), "masks": masks}

    def __call__(self) -> None:
        with attention_impl(self.attention):
            self._step()

    def _step(self) -> None:
        if not self.backward:
            with torch.inference_mode(), self.autocast:
                self.model([self.image]) if self.detects else self.model(self.image[None])
            return
        with self.autocast:
            if self.detects:
                losses = self.model([self.image], [self.target])
            else:  # two halves: the batch norm after UperNet's pooling needs more than one image
                halves = torch.stack(self.image[:, :, : self.image.shape[2] // 2 * 2].chunk(2, 2))
                labels = torch.randint(150, (2, *halves.shape[2:]), device=self.device)
                losses = self.model(halves, labels)
        sum(losses.values()).backward()
        self.model.zero_grad(set_to_none=True)


def start_worker(job: dict[str, Any]) -> Callable[[str], dict[str, Any]]:
    """The worker's side: responds to the requests of :class:`TimedModel`."""
    return SystemRun(job).respond


def run_systems(
    names: Sequence[str] = (),
    sizes: Sequence[tuple[int, int]] = ((800, 1344),),
    *,
    systems: Sequence[str] = (),
    dtype: str = "float32",
    device: str = "auto",
    backward: bool = False,
    rounds: int = 3,
) -> dict[str, Any]:
    """Measure systems one after another, each in a subprocess, with ``auto`` attention and with the reference.

    Args:
        names: timm names of backbones; by default DAT-T.
        sizes: (H, W) of the image.
        systems: by default all five.
        backward: measure a training step without the optimiser instead of inference.

    Returns:
        Machine, settings and rows, for ``deformvit.bench.report``.

    Raises:
        UserError: an unknown system, or a device that cannot be used.
    """
    target = pick_device(device)
    systems = list(systems) or [*DETECTORS, *SEGMENTERS]
    if unknown := sorted(set(systems) - {*DETECTORS, *SEGMENTERS}):
        raise UserError(f"unknown system {unknown[0]!r}; expected some of {', '.join((*DETECTORS, *SEGMENTERS))}")
    options: dict[str, Any] = {"device": str(target), "dtype": dtype, "backward": backward}
    jobs: list[dict[str, Any]] = [
        {**options, "name": name, "system": system, "attention": attention, "size": size}
        for size in sizes
        for name in list(names) or ["dat_tiny"]
        for system in systems
        for attention in ("auto", "reference")
    ]
    rows = []
    progress = tqdm(total=len(jobs) * (1 + rounds), unit="pass", disable=not sys.stderr.isatty())
    for job in jobs:
        label = f"{job['system']} {job['name']}, {job['attention']}"
        progress.set_description(label)
        times = []
        with Worker(start_worker, job) as worker:
            for _ in range(1 + rounds):
                times.append(worker.request("time"))
                progress.update()
            rows.append({"model": label, "image": list(job["size"])} | summary(times, 1) | worker.request("totals"))
    progress.close()
    settings = {
        "dtype": dtype, "backward": backward, "batch": 1, "rounds": rounds, "features": False, "compiled": False
    }  # fmt: skip
    return {"kind": "models", "machine": machine(target), "settings": settings, "rows": rows}
