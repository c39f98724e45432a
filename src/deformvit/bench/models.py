"""Whole models beside those that a user could pick instead."""

from __future__ import annotations

import statistics
import sys
import time
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

    def __init__(self, job: dict[str, Any]) -> None:
        self.device, dtype = torch.device(job["device"]), DTYPES[job["dtype"]]
        torch.manual_seed(0)
        model = build(job["name"], job["size"], job["features"]).to(self.device)
        model.train(job["backward"])
        self.parameters = sum(p.numel() for p in model.parameters())
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

    def answer(self, what: str) -> dict[str, Any]:
        """Seconds of a ``round``, or what it took in ``all``: MiB and parameters."""
        if what == "round":
            return {"seconds": process.seconds(self, self.device)}
        return {"mib": process.peak_mib(self.device), "parameters": self.parameters}


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
    """Measure whole models, each in a process of its own, their rounds in turn.

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
        "compiled": compiled,
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    warm = 3 if compiled else 2
    progress = tqdm(total=len(sizes) * (warm + rounds) * len(names), unit="pass", disable=not sys.stderr.isatty())
    for size in sizes:
        runs = [
            process.Apart("deformvit.bench.models", {**common, "name": name, "size": size}) for name in names
        ]  # fmt: skip
        times: list[list[dict[str, Any]]] = [[] for _ in names]
        for _ in range(warm + rounds):
            for name, run, answers in zip(names, runs, times, strict=True):
                progress.set_description(f"{name} at {size[0]} x {size[1]}")
                answers.append(run.ask("round"))
                time.sleep(0.01)  # threads of one process linger before they sleep
                progress.update()
        for name, run, answers in zip(names, runs, times, strict=True):
            rows.append({"model": name, "image": list(size)} | summary(answers, warm) | run.ask("all"))
            run.end()
    progress.close()
    settings = {**common, "rounds": rounds}
    del settings["device"]
    return {"kind": "models", "machine": process.machine(place), "settings": settings, "rows": rows}


def summary(answers: list[dict[str, Any]], warm: int) -> dict[str, Any]:
    """Median, fastest and slowest of the rounds after the first ``warm``, or the first error."""
    for answer in answers:
        if "error" in answer:
            return answer
    seconds = [answer["seconds"] for answer in answers[warm:]]
    return {"seconds": statistics.median(seconds), "fastest": min(seconds), "slowest": max(seconds)}


if __name__ == "__main__":
    process.serve_rounds(lambda job: Run(job).answer)
