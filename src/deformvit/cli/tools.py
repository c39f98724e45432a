"""``deformvit convert``, ``table`` and ``bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from deformvit.errors import UserError


def convert(
    source: tyro.conf.Positional[Path],
    target: tyro.conf.Positional[Path],
    /,
    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = "",
    config: Path | None = None,
    classes: Path | None = None,
    dtype: Literal["keep", "float32", "float16", "bfloat16"] = "keep",
    image_args: dict[str, str] = {},  # noqa: B006 - tyro reads it, nobody writes it
) -> None:
    """Turn a released checkpoint (or a model file of ours) into a safetensors model file; nothing in it is executed.

    Args:
        source: the released .pth, or a .safetensors file.
        target: the .safetensors file to write.
        model: the model that it belongs to, e.g. dat_tiny; not needed with `config` or for a model file of ours.
        config: the released YAML of the checkpoint, instead of `model`.
        classes: a text file with the name of a class on each line; numbers otherwise.
        dtype: what weights are stored as.
        image_args: what the model is fed: img_size, crop_pct, resize; by default as the model was published.
    """
    from deformvit.models import released

    shape = released.convert_file(source, target, model, config, classes, dtype, image_args)
    print(f"{target}: {shape}")


def table(
    number: tyro.conf.Positional[Literal["2", "3", "4", "5", "6", "7", "8", "9", "fig4", "neighbours", "main"]],
    /,
    runs: Path = Path("runs"),
    configurations: bool = False,
) -> None:
    """Print a table of the paper with published and measured values side by side, and what `ablate` found of it.

    Args:
        number: of the table; fig4 is Figure 4, neighbours the models that the paper measures itself against, main what
            `ablate main` found.
        runs: folder of training runs; a row shows the best top-1 of the runs that have its configuration. Results of
            `ablate` are looked for in it and in its folder ablate.
        configurations: list the options of `deformvit train` that every row is.
    """
    from deformvit import tables

    print(tables.render(number, runs, configurations))


def ablate(
    number: tyro.conf.Positional[Literal["main", "6", "7", "fig4"]],
    /,
    data: Annotated[str, tyro.conf.arg(aliases=["-d"])],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/ablate"),
    seeds: int = 3,
    epochs: int = 20,
    rows: tuple[int, ...] = (),
    workers: int = 0,
    device: str = "auto",
) -> None:
    """Train every row of a table of the paper at dat_nano's size, with several seeds, and print what came of it.

    What is finished in the output folder is not trained again, what is unfinished goes on. The table is written there
    too, with the curves as a picture; `table` shows it again.

    Args:
        number: `main`: DAT beside Swin, PVT, Deformable DETR's attention and DeiT; or a table or figure of the paper.
        data: images of 32 pixels such as CIFAR-10: a folder or parquet files, as in training.
        output: folder; runs are in one below it for each table and number of epochs.
        seeds: runs of every row.
        epochs: of every run.
        rows: train only these rows, counted from 1, so that several processes or machines share a table.
        workers: loader processes.
        device: a torch device; auto takes the GPU if there is one.
    """
    from deformvit import ablate as experiments
    from deformvit import recipes
    from deformvit.recipes.nano import TABLES

    if seeds < 1 or epochs < 1:
        raise UserError(f"seeds and epochs must be at least 1, got {seeds} and {epochs}")
    count = len(TABLES[number].rows)
    wrong = [row for row in rows if not 1 <= row <= count]
    if wrong:
        raise UserError(f"rows: there is no row {wrong[0]}; {number} has {count}")
    base = recipes.nano_cifar10(epochs)
    base.data.root, base.data.workers, base.run.device = data, workers, device
    print(experiments.run(number, base, seeds, output / f"{number}-{epochs}-epochs", experiments.progress, rows))


def bench(
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
