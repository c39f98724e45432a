"""``deformvit predict``: what a model makes of images."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from deformvit.cli.inputs import DEFAULT_MODEL, names_for, need_classes, report, sources
from deformvit.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from deformvit.models.files import ModelInfo
    from deformvit.systems import Detector, Segmenter


def predict(
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
        model: a file that `train` or `convert` wrote, or a name such as dat_nano.cifar10.
        top: classifiers: classes to print for each image.
        batch_size: classifiers: images per step.
        output: detectors, segmentation: folder to write to.
        threshold: detectors: score from which objects are drawn and printed.
        device: a torch device; auto takes the GPU if there is one.
    """
    from deformvit import systems
    from deformvit.devices import pick_device

    if top < 1 or batch_size < 1:
        raise UserError(f"top and batch_size must be at least 1, got {top} and {batch_size}")
    if not 0 <= threshold <= 1:
        raise UserError(f"threshold must be from 0 to 1, got {threshold}")
    inputs, place = sources(images), pick_device(device)
    network, info = systems.load(model)
    network.to(place)
    if isinstance(network, systems.Detector):
        report(_detect(network, info, inputs, place, output, threshold))
    elif isinstance(network, systems.Segmenter):
        report(_segment(network, info, inputs, place, output))
    else:
        need_classes(model, info)
        report(_classify(network, info, inputs, place, top, batch_size))


def _classify(
    network: nn.Module, info: ModelInfo, inputs: list[tuple[str, Any]], place: torch.device, top: int, batch_size: int
) -> list[str]:
    import torch

    from deformvit.explore.look import prepare

    failed = []
    for start in range(0, len(inputs), batch_size):
        batch, names = [], []
        for name, source in inputs[start : start + batch_size]:
            try:
                batch.append(prepare(source, info))
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
    return failed


def _readable(inputs: list[tuple[str, Any]], output: Path, failed: list[str]) -> Iterator[tuple[str, str, Tensor]]:
    """Name of the picture to write, path and pixels of each image; adds to ``failed`` what cannot be read."""
    from tqdm import tqdm

    from deformvit.explore.look import pixels

    output.mkdir(parents=True, exist_ok=True)
    names = names_for([path for path, _ in inputs])
    shown = tqdm(inputs, unit="image", leave=False, disable=not sys.stderr.isatty() or len(inputs) < 2)
    for name, (path, source) in zip(names, shown, strict=True):
        try:
            image = pixels(source)
        except UserError as error:
            failed.append(str(error))
            continue
        yield name, path, image


def _detect(
    network: Detector, info: ModelInfo, inputs: list[tuple[str, Any]], place: torch.device, output: Path,
    threshold: float,
) -> list[str]:  # fmt: skip
    import torch
    from tqdm import tqdm

    from deformvit import drawing
    from deformvit.metrics.detection import coco_results
    from deformvit.storage import write_atomically

    failed: list[str] = []
    results, listed = [], []
    categories = list(range(1, len(info.classes) + 1))
    for number, (name, path, image) in enumerate(_readable(inputs, output, failed), 1):
        with torch.inference_mode():
            found = {key: value.cpu() for key, value in network([image.to(place)])[0].items()}
        results += coco_results(number, found, categories)
        listed.append({"id": number, "file_name": path, "height": image.shape[1], "width": image.shape[2]})
        picture = output / f"{name}.png"
        drawing.detections(image, found, info.classes, threshold=threshold).save(picture)
        kept = found["labels"][found["scores"] >= threshold]
        counts = [(int((kept == i).sum()), text) for i, text in enumerate(info.classes) if bool((kept == i).any())]
        tqdm.write(f"{picture}: " + (", ".join(f"{count} {text}" for count, text in counts) or "nothing"), sys.stdout)
    labels = [{"id": i, "name": name} for i, name in zip(categories, info.classes, strict=True)]
    described = {"images": listed, "categories": labels}
    write_atomically(output / "results.json", lambda file: file.write_text(json.dumps(results)))
    write_atomically(output / "images.json", lambda file: file.write_text(json.dumps(described)))
    print(output / "results.json")
    return failed


def _segment(
    network: Segmenter, info: ModelInfo, inputs: list[tuple[str, Any]], place: torch.device, output: Path
) -> list[str]:
    import torch
    from tqdm import tqdm

    from deformvit import drawing

    failed: list[str] = []
    for name, _, image in _readable(inputs, output, failed):
        with torch.inference_mode():
            found = network.predict(image.to(place)).cpu()
        picture = output / f"{name}.png"
        drawing.labels(image, found, info.classes).save(picture)
        drawing.label_image(found, info.classes).save(output / f"{name}_labels.png")
        tqdm.write(str(picture), sys.stdout)
    return failed
