"""The command ``deformvit``: train, eval, predict, figure, convert, table, bench. Heavy imports come with a command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from deformvit import recipes
from deformvit.config import Config
from deformvit.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from deformvit.models.files import ModelInfo

DEFAULT_MODEL = "dat_nano.cifar10"
EXTRAS = {"pyarrow": "train", "tensorboard": "train", "matplotlib": "figures"}
"""Which extra installs what not every command needs."""
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}

if TYPE_CHECKING:
    Recipe = Config
else:
    Recipe = Annotated[
        tyro.extras.subcommand_type_from_defaults(
            {name: recipe() for name, recipe in recipes.ALL.items()},
            {name: (recipe.__doc__ or "").strip() for name, recipe in recipes.ALL.items()},
            prefix_names=False,
        ),
        tyro.conf.arg(name=""),
    ]


def train(config: Recipe) -> None:
    """Train a recipe; every field of its configuration is an option."""
    from deformvit.engine import loop
    from deformvit.tasks.classification import Classification

    metrics = loop.fit(Classification(config), config)
    _table([(name, f"{value:.4g}") for name, value in metrics.items()])
    print(f"\nbest weights: {config.run.output / 'best.safetensors'}")


def evaluate(
    data: Annotated[str, tyro.conf.arg(aliases=["-d"])],
    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = DEFAULT_MODEL,
    batch_size: int = 256,
    workers: int = 1,
    device: str = "auto",
    resize: Literal["", "shorter", "square"] = "",
) -> None:
    """Measure the accuracy of a model file or of packaged weights on labelled images.

    Args:
        data: a folder, parquet files or `sample`, as in training; the validation split is used.
        model: a file that `train` or `convert` wrote, or a name such as dat_nano.cifar10.
        batch_size: images per step.
        workers: loader processes.
        device: a torch device; auto takes the GPU if there is one.
        resize: how images are resized, if not as the model file says.
    """
    from torch.utils.data import DataLoader

    from deformvit.data import DataError, eval_transform, open_split
    from deformvit.engine.runtime import pick_device
    from deformvit.models import files
    from deformvit.tasks import classification

    if batch_size < 1 or workers < 0:
        raise UserError(f"batch_size must be at least 1 and workers at least 0, got {batch_size} and {workers}")
    place = pick_device(device)
    network, info = files.load(model)
    _need_classes(model, info)
    transform = eval_transform(info.img_size, info.crop_pct, resize or info.resize, info.mean, info.std)
    images = open_split(data, "val", transform)
    numbered = info.classes == [str(i) for i in range(len(images.classes))]  # a converted file that was given no names
    if list(images.classes) != list(info.classes) and not numbered:
        raise DataError(
            f"{data} has classes {', '.join(images.classes[:5])}, ... ({len(images.classes)}), but {model} knows "
            f"{', '.join(info.classes[:5])}, ... ({len(info.classes)})"
        )
    metrics = classification.evaluate(
        network.to(place), DataLoader(images, batch_size, num_workers=workers), place, progress=sys.stderr.isatty()
    )
    _table([("images", str(len(images))), *((name, f"{value:.4g}") for name, value in metrics.items())])


def predict(
    images: tyro.conf.Positional[list[Path]],
    /,
    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = DEFAULT_MODEL,
    top: int = 5,
    batch_size: int = 32,
    device: str = "auto",
) -> None:
    """Print the most likely classes of images.

    Args:
        images: image files and folders whose images are taken, subfolders included; or `photo` for the embedded photo,
            `sample` for test images of the embedded Fashion-MNIST.
        model: a file that `train` or `convert` wrote, or a name such as dat_nano.cifar10.
        top: classes to print for each image.
        batch_size: images per step.
        device: a torch device; auto takes the GPU if there is one.
    """
    import torch

    from deformvit.engine.runtime import pick_device
    from deformvit.models import files

    if top < 1 or batch_size < 1:
        raise UserError(f"top and batch_size must be at least 1, got {top} and {batch_size}")
    inputs, place, failed = _inputs(images), pick_device(device), []
    network, info = files.load(model)
    _need_classes(model, info)
    network.to(place)
    for start in range(0, len(inputs), batch_size):
        batch, names = [], []
        for name, source in inputs[start : start + batch_size]:
            try:
                batch.append(_prepare(source, info))
                names.append(name)
            except UserError as error:
                failed.append(str(error))
        if not batch:
            continue
        with torch.inference_mode():
            chances = network(torch.stack(batch).to(place)).float().softmax(-1).cpu()
        for name, row in zip(names, chances, strict=True):
            best = row.topk(min(top, len(row)))
            print(name)
            for value, label in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                print(f"  {100 * value:5.1f} %  {info.classes[label]}")
    _report(failed)


def figure(
    kind: tyro.conf.Positional[Literal["points"]],
    images: tyro.conf.Positional[list[Path]],
    /,
    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = DEFAULT_MODEL,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("figures"),
    layers: tuple[int, ...] = (),
    format: Literal["png", "svg", "pdf"] = "png",
    dpi: int = 150,
    device: str = "auto",
) -> None:
    """Draw where a model looks, one picture for each image.

    Args:
        kind: `points`: reference grid, offset arrows and deformed points by layer and group (Fig. 2 of the paper).
        images: image files and folders whose images are taken, subfolders included; or `photo` for the embedded photo,
            `sample` for test images of the embedded Fashion-MNIST.
        model: a file that `train` or `convert` wrote, or a name such as dat_nano.cifar10.
        output: folder to write to.
        layers: which deformable layers to draw, counted from 1; all by default.
        format: picture format.
        dpi: pixels per inch.
        device: a torch device; auto takes the GPU if there is one.
    """
    import torch

    from deformvit import figures
    from deformvit.engine.runtime import pick_device
    from deformvit.models import files, trace

    inputs, place = _inputs(images), pick_device(device)
    network, info = files.load(model)
    network.to(place)
    mean, std = (torch.tensor(values)[:, None, None] for values in (info.mean, info.std))
    output.mkdir(parents=True, exist_ok=True)
    failed = []
    taken: set[str] = set()
    for path, source in inputs:
        name = Path(path).stem
        while name in taken:  # files of the same name in two folders
            name += "_"
        taken.add(name)
        try:
            image = _prepare(source, info)
        except UserError as error:
            failed.append(str(error))
            continue
        with torch.inference_mode(), trace.record_points(network) as recorded:
            logits = network(image[None].to(place))
        title = name
        if info.classes:  # a detector's backbone has none
            chances = logits.float().softmax(-1)[0].cpu()
            best = int(chances.argmax())
            title = f"{name}: {info.classes[best]} {100 * chances[best]:.0f} %"
        wrong = [number for number in layers if not 1 <= number <= len(recorded.layers)]
        if wrong:
            raise UserError(
                f"layers: there is no layer {wrong[0]}; {model} has {len(recorded.layers)} deformable layers"
            )
        chosen = [recorded.layers[number - 1] for number in layers] if layers else recorded.layers
        picture = figures.points(image * std + mean, chosen, title=title)
        target = output / f"{name}_{kind}.{format}"
        picture.savefig(target, dpi=dpi)
        print(target)
    _report(failed)


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
    number: tyro.conf.Positional[Literal["2", "6", "7", "8", "9", "fig4", "neighbours"]],
    /,
    runs: Path = Path("runs"),
    configurations: bool = False,
) -> None:
    """Print a table of the paper with published and measured values side by side.

    Args:
        number: of the table; fig4 is Figure 4, neighbours the models that the paper measures itself against.
        runs: folder of training runs; a row shows the best top-1 of the runs that have its configuration.
        configurations: list the options of `deformvit train` that every row is.
    """
    from deformvit import tables

    print(tables.render(number, runs, configurations))


def bench(
    kind: tyro.conf.Positional[Literal["attention", "models"]] = "attention",
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
            formulation; `models`: whole models beside those of timm.
        explain: say what can run on this machine and why the rest can't, what `auto` takes, and measure nothing.
        output: folder to write to.
        models: T and B for attention, timm names for models; the usual ones by default.
        sizes: of images, as 224 or 800x1344; by default 224, 384, 512 and 800x1344 for attention, 224 for models.
        implementations: of attention; by default all that can run, and the baselines `no bias` and `released`.
        batch: images at once; by default 1 for attention, 8 for models.
        dtype: of features; whole models run under autocast.
        device: a torch device; auto takes the GPU if there is one.
        backward: models: forward and backward in training mode instead of inference.
        forward_only: attention: not forward + backward too.
        compiled: models under torch.compile; the reference under torch.compile too, for attention.
        features: models give the maps of all stages, as a detector takes them, instead of logits.
        rounds: how often each is timed; the median counts. By default 5 for attention, 9 for models.
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
    else:
        report = measuring.run_models(
            models, image_sizes or [(224, 224)], batch=batch or 8, features=features, dtype=dtype, device=device,
            backward=backward, compiled=compiled, rounds=rounds or 9,
        )  # fmt: skip
    print(reports.table(report))
    print()
    for path in reports.write(report, output):
        print(path)


# ---- shared by the commands ---------------------------------------------------------------------------------------


def _image_files(images: list[Path]) -> list[Path]:
    paths: list[Path] = []
    for path in images:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise UserError(f"{path}: no images in this folder")
            paths += found
        elif path.is_file():
            paths.append(path)
        else:
            raise UserError(f"{path}: no such file or folder")
    return paths


def _inputs(images: list[Path]) -> list[tuple[str, Any]]:
    """Names, and paths or decoded images, in the order given."""
    if images == [Path("photo")] and not images[0].exists():
        from deformvit.data.datasets import SAMPLES

        return [("cat.jpg", SAMPLES / "cat.jpg")]
    if images == [Path("sample")] and not images[0].exists():
        from deformvit.data import open_split

        split = open_split("sample", "val")
        return [(f"sample{i}", split[i][0]) for i in range(8)]
    return [(str(path), path) for path in _image_files(images)]


def _need_classes(model: str, info: ModelInfo) -> None:
    if not info.classes:
        raise UserError(f"{model} is a backbone without a classifier: it predicts no classes")


def _prepare(source: Any, info: ModelInfo) -> Tensor:
    from deformvit.data import eval_transform
    from deformvit.data.datasets import decode

    image = decode(source, str(source)) if isinstance(source, Path) else source
    transform = eval_transform(info.img_size, info.crop_pct, info.resize, info.mean, info.std)
    return transform(image)


def _report(failed: list[str]) -> None:
    for message in failed:
        print(f"deformvit: {message}", file=sys.stderr)
    if failed:
        raise SystemExit(1)


def _size(text: str) -> tuple[int, int]:
    """224 or 800x1344."""
    height, _, width = text.partition("x")
    if not height.isdecimal() or not (width or height).isdecimal() or int(height) * int(width or height) == 0:
        raise UserError(f"sizes: expected a side or HEIGHTxWIDTH, such as 224 or 800x1344, got {text!r}")
    return int(height), int(width or height)


def _table(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")


def main(args: list[str] | None = None) -> None:
    """Run the command; errors that the user can mend are one line, without a traceback."""
    commands: dict[str, Any] = {
        "train": train,
        "eval": evaluate,
        "predict": predict,
        "figure": figure,
        "convert": convert,
        "table": table,
        "bench": bench,
    }
    try:
        tyro.extras.subcommand_cli_from_dict(commands, prog="deformvit", description=__doc__, args=args)
    except UserError as error:
        message = str(error).strip()
        if message.startswith("Caught ") and "DataLoader worker" in message:  # the error is the traceback's last line
            message = message.splitlines()[-1].removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")
        print(f"deformvit: {' '.join(message.split())}", file=sys.stderr)
        raise SystemExit(1) from error
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        extra = EXTRAS.get(package)
        if extra is None:
            raise
        print(f"deformvit: this needs {package}: pip install 'deformvit[{extra}]'", file=sys.stderr)
        raise SystemExit(1) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
