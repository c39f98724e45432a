"""``deformvit predict``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import tyro

from deformvit.cli import records
from deformvit.cli.inputs import DEFAULT_MODEL, names_for, refuse_to_overwrite, report, sources
from deformvit.errors import UserError

if TYPE_CHECKING:
    from deformvit.cli.records import Records
    from deformvit.inference import Predictor
    from deformvit.results import DetectionResult, SegmentationResult


def run(
    images: tyro.conf.Positional[list[Path]],
    /,
    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = DEFAULT_MODEL,
    top: int = 5,
    batch_size: int = 32,
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    json: Path | None = None,
    csv: Path | None = None,
    threshold: float = 0.5,
    device: str = "auto",
) -> None:
    """Print the most likely classes of images; draw what detectors and segmentation networks find.

    Detectors write a picture for each image, `results.json` in COCO's format and `images.json` with the images and
    categories it numbers; segmentation networks a picture and a PNG of labels for each image. With --json or --csv
    every model writes what it found to one file, in the order of the images, and pictures only if --output is given.

    Args:
        images: image files and folders whose images are taken, subfolders included; or `photo` for the embedded photo,
            `sample` for test images of the embedded Fashion-MNIST.
        model: a model file, a run's folder, a folder of the Hugging Face hub, or a name such as dat_nano.cifar10.
        top: classifiers: classes of each image, the most probable first.
        batch_size: classifiers: images per step.
        output: detectors, segmentation: folder to write to; `predictions` by default.
        json: write an array with an object for each image to this file; `-` is the standard output.
        csv: write a table to this file, with a row for each image, of detectors for each object, of segmentation
            networks for each class in an image; `-` is the standard output.
        threshold: detectors: score from which objects are drawn, printed and written; `results.json` has all.
        device: a torch device; auto takes the GPU if there is one.
    """
    from deformvit.inference import load

    if not 0 <= threshold <= 1:
        raise UserError(f"threshold must be from 0 to 1, got {threshold}")
    inputs = sources(images)
    paths = [path for path, _ in inputs]
    records.check(json, csv, paths)
    predictor = load(model, device=device)
    if output is None and not (json or csv):
        output = Path("predictions")
    told = sys.stderr if records.STDOUT in (json, csv) else sys.stdout
    failed: list[str] = []
    with records.opened(predictor, paths, top, json, csv) as written:
        if predictor.task == "classification":
            results = _results(predictor, inputs, written, failed, top=top, batch_size=batch_size)
            for result in _shown(results, len(paths)) if json or csv else results:
                written.add(result)
                if not (json or csv):
                    print(paths[result.index])
                    for finding in result.findings():
                        print(f"  {finding.text:>7}  {finding.name}")
        elif predictor.task == "detection":
            results = _results(predictor, inputs, written, failed, threshold=0.0)  # results.json has all objects
            _detections(predictor, _shown(results, len(paths)), paths, output, threshold, written, told)
        else:
            results = _results(predictor, inputs, written, failed)
            _label_maps(_shown(results, len(paths)), paths, output, written, told)
    for path in (json, csv):
        if path not in (None, records.STDOUT):
            print(path, file=told)
    report(failed)


def _results(
    predictor: Predictor[Any], inputs: list[tuple[str, Any]], written: Records, failed: list[str], **options: Any
) -> Iterator[Any]:
    """The results, in the order of the images; errors take their places among what is written."""
    errors: dict[int, str] = {}
    taken = -1

    def images() -> Iterator[Any]:
        nonlocal taken
        for _, source in inputs:
            taken += 1
            yield source

    for result in predictor.stream(images(), on_error=lambda error: errors.update({taken: str(error)}), **options):
        for index in [index for index in errors if index < result.index]:
            failed.append(errors.pop(index))
            written.add_error(index, failed[-1])
        yield result
    for index, message in errors.items():
        failed.append(message)
        written.add_error(index, message)


def _shown(results: Iterator[Any], count: int) -> Iterator[Any]:
    """The results, behind a progress bar where there is a terminal."""
    from tqdm import tqdm

    return iter(tqdm(results, total=count, unit="image", leave=False, disable=not sys.stderr.isatty() or count < 2))


def _detections(
    predictor: Predictor[DetectionResult], results: Iterator[DetectionResult], paths: list[str], output: Path | None,
    threshold: float, written: Records, told: TextIO,
) -> None:  # fmt: skip
    import json

    from tqdm import tqdm

    from deformvit.metrics.detection import coco_results
    from deformvit.storage import write_atomically

    names = names_for(paths)
    if output is not None:
        refuse_to_overwrite(paths, [output / f"{name}.png" for name in names])
        output.mkdir(parents=True, exist_ok=True)
    categories = list(range(1, len(predictor.classes) + 1))
    objects: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    for number, result in enumerate(results, 1):
        sure = result.above(threshold)
        written.add(sure)
        if output is None:
            continue
        objects += coco_results(number, result.prediction(), categories)
        height, width = result.hw
        images.append({"id": number, "file_name": paths[result.index], "height": height, "width": width})
        picture = output / f"{names[result.index]}.png"
        sure.draw().save(picture)
        counts = [f"{sure.names.count(name)} {name}" for name in dict.fromkeys(predictor.classes) if name in sure.names]
        tqdm.write(f"{picture}: {', '.join(counts) or 'nothing'}", told)
    if output is None:
        return
    labels = [{"id": i, "name": name} for i, name in zip(categories, predictor.classes, strict=True)]
    described = {"images": images, "categories": labels}
    write_atomically(output / "results.json", lambda file: file.write_text(json.dumps(objects)))
    write_atomically(output / "images.json", lambda file: file.write_text(json.dumps(described)))
    print(output / "results.json", file=told)


def _label_maps(
    results: Iterator[SegmentationResult], paths: list[str], output: Path | None, written: Records, told: TextIO
) -> None:
    from tqdm import tqdm

    from deformvit import drawing

    endings = ("", "_labels")
    names = names_for(paths, endings)
    if output is not None:
        refuse_to_overwrite(paths, [output / f"{name}{ending}.png" for name in names for ending in endings])
        output.mkdir(parents=True, exist_ok=True)
    for result in results:
        if output is None:
            written.add(result)
            continue
        picture, labels = (output / f"{names[result.index]}{ending}.png" for ending in endings)
        result.draw().save(picture)
        drawing.label_image(result.label_map, result.classes).save(labels)
        written.add(result, label_map=str(labels))
        tqdm.write(str(picture), told)
