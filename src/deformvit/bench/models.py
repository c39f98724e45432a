"""Whole models beside those that a user could pick instead."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn
from tqdm import tqdm

import deformvit  # noqa: F401 - registers the models
from deformvit.bench import process
from deformvit.errors import UserError

DEFAULT = (
    "dat_tiny", "datpp_tiny", "swin_tiny_patch4_window7_224", "deit_small_patch16_224", "pvt_v2_b2", "dat_small",
    "swin_small_patch4_window7_224", "dat_base", "swin_base_patch4_window7_224",
)  # fmt: skip
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def build(name: str, size: Sequence[int], features: bool) -> nn.Module:
    """A model for images of that size; Swin and DeiT, made for one size, are told so."""
    arguments: dict[str, Any] = {"features_only": True} if features else {}
    if name.startswith(("swin", "deit", "vit")):
        arguments["img_size"] = tuple(size)
    model: nn.Module = timm.create_model(name, **arguments)
    return model


class Run:
    """One pass of one model, over and over."""

    def __init__(self, name: str, job: dict[str, Any]) -> None:
        self.device, dtype = torch.device(job["device"]), DTYPES[job["dtype"]]
        torch.manual_seed(0)
        model = build(name, job["size"], job["features"]).to(self.device)
        model.train(job["backward"])
        self.model: nn.Module = torch.compile(model) if job["compiled"] else model  # type: ignore[assignment]
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


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of all models, their rounds in turn; or the peak of memory of one."""
    device = torch.device(job["device"])
    if job["what"] == "memory":
        run = Run(job["names"][0], job)
        before = process.peak_mib(device) if device.type == "cuda" else 0.0
        run()
        run()
        parameters = sum(p.numel() for p in run.model.parameters())
        return {"mib": process.peak_mib(device), "before": before, "parameters": parameters}
    runs = {name: Run(name, job) for name in job["names"]}
    times: dict[str, list[float]] = {name: [] for name in runs}
    warm = 3 if job["compiled"] else 2
    for round_ in range(warm + job["rounds"]):
        for name, run in runs.items():
            taken = process.seconds(run, device)
            if round_ >= warm:
                times[name].append(taken)
    return {
        name: {"seconds": statistics.median(t), "fastest": min(t), "slowest": max(t)} for name, t in times.items()
    }  # fmt: skip


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
    """Measure whole models.

    Args:
        names: timm names, ours and others'; :data:`DEFAULT` by default.
        sizes: (H, W) of images.
        batch: images a step.
        features: maps of all stages, as a detector takes them, instead of logits.
        backward: forward and backward in training mode instead of inference.
        compiled: under torch.compile.

    Returns:
        What was measured, for :mod:`deformvit.bench.report`.

    Raises:
        UserError: an unknown model or device.
    """
    place = process.device_of(device)
    names = list(names) or list(DEFAULT)
    for name in names:
        if not timm.is_model(name):
            raise UserError(f"timm knows no model {name!r}")
    common = {
        "device": str(place), "dtype": dtype, "batch": batch, "features": features, "backward": backward,
        "compiled": compiled, "rounds": rounds,
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    progress = tqdm(total=len(sizes) * (1 + len(names)), unit="measurement", disable=not sys.stderr.isatty())
    for size in sizes:
        progress.set_description(f"time at {size[0]} x {size[1]}")
        times = process.apart("deformvit.bench.models", {**common, "what": "time", "names": names, "size": size}, 7200)
        progress.update()
        for name in names:
            progress.set_description(f"memory of {name}")
            memory = process.apart(
                "deformvit.bench.models", {**common, "what": "memory", "names": [name], "size": size}
            )
            progress.update()
            error = {"error": times["error"]} if "error" in times else {}
            rows.append({"model": name, "image": list(size)} | times.get(name, error) | memory)
    progress.close()
    settings = {key: value for key, value in common.items() if key != "device"}
    return {"kind": "models", "machine": process.machine(place), "settings": settings, "rows": rows}


if __name__ == "__main__":
    process.serve(measure)
