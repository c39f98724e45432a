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
    batch: int = 0,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: str = "auto",
    backward: bool = False,
    forward_only: bool = False,
    compiled: bool = False,
    features: bool = False,
    rounds: int = 0,
) -> None:
    """Measure time and memory on this machine: a table, a JSON file and a picture.

    Args:
        kind: `attention`: every implementation at stage 3's sizes, beside attention without a bias and the released
            formulation; `models`: whole models beside those of timm; `systems`: detectors and segmentation networks
            with the fast attention and with the reference.
        explain: say what can run on this machine and why the rest can't, what `auto` takes, and measure nothing.
        output: folder to write to.
        models: T and B for attention, timm names for models and systems; the usual ones by default.
        sizes: of images, as 224 or 800x1344; by default 224, 384, 512 and 800x1344 for attention, 224 for models,
            800x1344 for systems.
        implementations: of attention; by default all that can run, and the baselines `no bias` and `released`.
        batch: images at once; by default 1 for attention, 8 for models; systems take one.
        dtype: of features; whole models run under autocast.
        device: a torch device; auto takes the GPU if there is one.
        backward: models and systems: forward and backward in training mode instead of inference.
        forward_only: attention: not forward + backward too.
        compiled: models under torch.compile; the reference under torch.compile too, for attention.
        features: models give the maps of all stages, as a detector takes them, instead of logits.
        rounds: how often each is timed; the median counts. By default 5 for attention, 9 for models, 3 for systems.
    """
    from deformvit import bench as measuring
    from deformvit.bench import report as reports

    if explain:
        print(measuring.explain(device, dtype))
        return
    if batch < 0 or rounds < 0:
        raise UserError(f"batch and rounds must be positive, got {batch} and {rounds}")
    image_sizes = [_size(size) for size in sizes]
    if kind == "attention":
        wrong = sorted(set(models) - {"T", "B"})
        if wrong:
            raise UserError(f"models: attention is measured as in DAT-T and DAT-B, T and B; got {wrong[0]!r}")
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
