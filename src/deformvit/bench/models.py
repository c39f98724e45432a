"""Whole models, ours beside others of timm."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import timm
import torch
from torch import Tensor, nn
from tqdm import tqdm

import deformvit  # noqa: F401 - registers the models
from deformvit.bench.measure import DTYPES, TimedModel, machine, summary
from deformvit.bench.worker import Worker
from deformvit.devices import pick_device
from deformvit.errors import UserError

DEFAULT = (
    "dat_tiny", "datpp_tiny", "swin_tiny_patch4_window7_224", "deit_small_patch16_224", "pvt_v2_b2", "dat_small",
    "swin_small_patch4_window7_224", "dat_base", "swin_base_patch4_window7_224",
)  # fmt: skip


def build(name: str, size: Sequence[int], features: bool) -> nn.Module:
    """A model for images of that size, which models that are built for one size, such as Swin and DeiT, are given."""
    arguments: dict[str, Any] = {"features_only": True} if features else {}
    if name.startswith(("swin", "deit", "vit")):
        arguments["img_size"] = tuple(size)
    model: nn.Module = timm.create_model(name, **arguments)
    return model


class ModelRun(TimedModel):
    """A classifier or its feature maps, forward or forward and backward."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.device, dtype = torch.device(job["device"]), DTYPES[job["dtype"]]
        torch.manual_seed(0)
        model = build(job["name"], job["size"], job["features"]).to(self.device)
        model.train(job["backward"])
        self.parameters = sum(p.numel() for p in model.parameters())
        self.model = torch.compile(model) if job["compiled"] else model  # type: ignore[assignment]
        self.autocast = torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)
        self.backward = job["backward"]
        self.x = torch.randn(job["batch"], 3, *job["size"], device=self.device)

    def __call__(self) -> None:
        if not self.backward:
            with torch.inference_mode(), self.autocast:
                self.model(self.x)
            return
        with self.autocast:
            out = self.model(self.x)
        outputs: list[Tensor] = out if isinstance(out, list) else [out]
        sum(o.float().mean() for o in outputs).backward()  # type: ignore[union-attr]
        self.model.zero_grad(set_to_none=True)


def start_worker(job: dict[str, Any]) -> Callable[[str], dict[str, Any]]:
    """The worker's side: responds to the requests of :class:`TimedModel`."""
    return ModelRun(job).respond


def run_models(
    names: Sequence[str] = (),
    sizes: Sequence[tuple[int, int]] = ((224, 224),),
    *,
    batch: int = 8,
    features: bool = False,
    dtype: str = "float32",
    device: str = "auto",
    backward: bool = False,
    compiled: bool = False,
    rounds: int = 9,
) -> dict[str, Any]:
    """Measure whole models, each in a subprocess; one pass of every model in turn, ``rounds`` times.

    Args:
        names: timm names of our models and others; by default ``DEFAULT``.
        sizes: (H, W) of images.
        batch: images in a pass.
        features: compute the feature maps of all stages, as for a detector, instead of logits.
        backward: forward and backward in training mode instead of inference.
        compiled: run under torch.compile.

    Returns:
        Machine, settings and rows, for ``deformvit.bench.report``.

    Raises:
        UserError: an unknown model, or a device that cannot be used.
    """
    target = pick_device(device)
    names = list(names) or list(DEFAULT)
    for name in names:
        if not timm.is_model(name):
            raise UserError(f"unknown model {name!r}; timm.list_models() lists the names")
    job = {
        "device": str(target), "dtype": dtype, "batch": batch, "features": features, "backward": backward,
        "compiled": compiled,
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    warmup = 3 if compiled else 2
    progress = tqdm(total=len(sizes) * (warmup + rounds) * len(names), unit="pass", disable=not sys.stderr.isatty())
    for size in sizes:
        times: list[list[dict[str, Any]]] = [[] for _ in names]
        with ExitStack() as stack:
            workers = [
                stack.enter_context(Worker(start_worker, {**job, "name": name, "size": size}))
                for name in names
            ]  # fmt: skip
            for _ in range(warmup + rounds):
                for name, worker, passes in zip(names, workers, times, strict=True):
                    progress.set_description(f"{name} at {size[0]} x {size[1]}")
                    passes.append(worker.request("time"))
                    time.sleep(0.01)  # the worker's threads spin for a moment before they sleep
                    progress.update()
            for name, worker, passes in zip(names, workers, times, strict=True):
                rows.append({"model": name, "image": list(size)} | summary(passes, warmup) | worker.request("totals"))
    progress.close()
    settings = {**job, "rounds": rounds}
    del settings["device"]
    return {"kind": "models", "machine": machine(target), "settings": settings, "rows": rows}
