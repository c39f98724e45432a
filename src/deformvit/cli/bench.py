"""``deformvit bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from deformvit.errors import UserError


def run(
    kind: tyro.conf.Positional[Literal["attention", "models", "systems"]] = "attention",
    /,
    explain: bool = False,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("bench"),
    models: tuple[str, ...] = (),
    sizes: tuple[str, ...] = (),
    implementations: tuple[str, ...] = (),
    batch: int | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: str = "auto",
    backward: bool = False,
    forward_only: bool = False,
    compiled: bool = False,
    features: bool = False,
    rounds: int | None = None,
) -> None:
    """Measure time and memory on this machine: a table, a JSON file and a figure.

    Args:
        kind: `attention`: every implementation at the sizes of stage 3, beside attention without a bias and the
            released formulation; `models`: whole models, ours and others of timm; `systems`: detectors and
            segmentation networks, with the automatic implementation of attention and with the reference.
        explain: print which implementations can run on this machine, why others cannot, and what `auto` takes; measure
            nothing.
        output: folder to write to.
        models: T and B for attention, timm names for models and systems; by default T and B, ours beside Swin, DeiT
            and PVT, and dat_tiny.
        sizes: of images, such as 224 or 800x1344; by default 224, 384, 512 and 800x1344 for attention, 224 for models,
            800x1344 for systems.
        implementations: of attention; by default all that can run, and the baselines `no bias` and `released`.
        batch: images in a pass; by default 1 for attention, 8 for models. Systems take one image.
        dtype: of features; models and systems run under autocast.
        device: a torch device; auto takes the GPU if there is one.
        backward: models and systems: forward and backward in training mode instead of inference.
        forward_only: attention: do not measure forward + backward.
        compiled: models: run under torch.compile. attention: measure the reference under torch.compile too.
        features: models: compute the feature maps of all stages, as for a detector, instead of logits.
        rounds: how often each is timed; the median is reported. By default 5 for attention, 9 for models, 3 for
            systems.
    """
    from deformvit import bench as measuring
    from deformvit.bench import report as reports

    if explain:
        print(measuring.explain(device, dtype))
        return
    for name, value in (("batch", batch), ("rounds", rounds)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    image_sizes = [_size(size) for size in sizes]
    if kind == "attention":
        unknown = sorted(set(models) - {"T", "B"})
        if unknown:
            raise UserError(f"models: attention is measured as in DAT-T and DAT-B; expected T or B, got {unknown[0]!r}")
        report = measuring.run_attention(
            models or ("T", "B"), image_sizes or [(224, 224), (384, 384), (512, 512), (800, 1344)], implementations,
            batch=batch or 1, dtype=dtype, device=device, backward=not forward_only, compiled=compiled,
            rounds=rounds or 5,
        )  # fmt: skip
    elif kind == "systems":
        report = measuring.run_systems(
            models, image_sizes or [(800, 1344)], dtype=dtype, device=device, backward=backward, rounds=rounds or 3
        )
    else:
        report = measuring.run_models(
            models, image_sizes or [(224, 224)], batch=batch or 8, features=features, dtype=dtype, device=device,
            backward=backward, compiled=compiled, rounds=rounds or 9,
        )  # fmt: skip
    print(reports.table(report))
    print()
    for path in reports.write(report, output):
        print(path)


def _size(text: str) -> tuple[int, int]:
    """224 or 800x1344."""
    height, _, width = text.partition("x")
    if not height.isdecimal() or not (width or height).isdecimal() or int(height) * int(width or height) == 0:
        raise UserError(f"sizes: expected a side or HEIGHTxWIDTH, such as 224 or 800x1344, got {text!r}")
    return int(height), int(width or height)
