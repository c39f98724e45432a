"""``deformvit predict``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from deformvit.cli.inputs import DEFAULT_MODEL, names_for, refuse_to_overwrite, report, sources
from deformvit.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deformvit.inference import Predictor
    from deformvit.results import DetectionResult


def run(
    images: tyro.conf.Positional[list[Path]],
    /,
    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = DEFAULT_MODEL,
    top: int = 5,
    batch_size: int = 32,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("predictions"),
    threshold: float = 0.5,
    device: str = "auto",
) -> None:
    """Print the most likely classes of images; draw what detectors and segmentation networks find.

    Detectors write a picture for each image, `results.json` in COCO's format and `images.json` with the images and
    categories it numbers; segmentation networks a picture and a PNG of labels for each image.

    Args:
        images: image files and folders whose images are taken, subfolders included; or `photo` for the embedded photo,
            `sample` for test images of the embedded Fashion-MNIST.
        model: a model file, a run's folder, a folder of the Hugging Face hub, or a name such as dat_nano.cifar10.
        top: classifiers: classes to print for each image.
        batch_size: classifiers: images per step.
        output: detectors, segmentation: folder to write to.
        threshold: detectors: score from which objects are drawn and printed.
        device: a torch device; auto takes the GPU if there is one.
    """
    from deformvit.inference import load

    if not 0 <= threshold <= 1:
        raise UserError(f"threshold must be from 0 to 1, got {threshold}")
    inputs = sources(images)
    predictor = load(model, device=device)
    failed: list[str] = []
    options: dict[str, Any] = {"top": top, "batch_size": batch_size}
    if predictor.task == "detection":
        options["threshold"] = 0.0  # results.json has all objects; the threshold is for pictures
    results = predictor.stream(
        (source for _, source in inputs), on_error=lambda error: failed.append(str(error)), **options
    )
    paths = [path for path, _ in inputs]
    if predictor.task == "classification":
        for result in results:
            print(paths[result.index])
            for finding in result.findings():
                print(f"  {finding.text:>7}  {finding.name}")
    elif predictor.task == "detection":
        _detections(predictor, _shown(results, len(inputs)), paths, output, threshold)
    else:
        _label_maps(_shown(results, len(inputs)), paths, output)
    report(failed)


def _shown(results: Iterator[Any], count: int) -> Iterator[Any]:
    """The results, behind a progress bar where there is a terminal."""
    from tqdm import tqdm

    return iter(tqdm(results, total=count, unit="image", leave=False, disable=not sys.stderr.isatty() or count < 2))


def _detections(
    predictor: Predictor[DetectionResult], results: Iterator[DetectionResult], paths: list[str], output: Path,
    threshold: float,
) -> None:  # fmt: skip
    from tqdm import tqdm

    from deformvit.metrics.detection import coco_results
    from deformvit.storage import write_atomically

    names = names_for(paths)
    refuse_to_overwrite(paths, [output / f"{name}.png" for name in names])
    output.mkdir(parents=True, exist_ok=True)
    categories = list(range(1, len(predictor.classes) + 1))
    objects: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    for number, result in enumerate(results, 1):
        objects += coco_results(number, result.prediction(), categories)
        height, width = result.hw
        images.append({"id": number, "file_name": paths[result.index], "height": height, "width": width})
        sure = result.above(threshold)
        picture = output / f"{names[result.index]}.png"
        sure.draw().save(picture)
        counts = [f"{sure.names.count(name)} {name}" for name in dict.fromkeys(predictor.classes) if name in sure.names]
        tqdm.write(f"{picture}: {', '.join(counts) or 'nothing'}", sys.stdout)
    labels = [{"id": i, "name": name} for i, name in zip(categories, predictor.classes, strict=True)]
    described = {"images": images, "categories": labels}
    write_atomically(output / "results.json", lambda file: file.write_text(json.dumps(objects)))
    write_atomically(output / "images.json", lambda file: file.write_text(json.dumps(described)))
    print(output / "results.json")


def _label_maps(results: Iterator[Any], paths: list[str], output: Path) -> None:
    from tqdm import tqdm

    from deformvit import drawing

    endings = ("", "_labels")
    names = names_for(paths, endings)
    refuse_to_overwrite(paths, [output / f"{name}{ending}.png" for name in names for ending in endings])
    output.mkdir(parents=True, exist_ok=True)
    for result in results:
        picture = output / f"{names[result.index]}.png"
        result.draw().save(picture)
        drawing.label_image(result.label_map, result.classes).save(output / f"{names[result.index]}_labels.png")
        tqdm.write(str(picture), sys.stdout)
