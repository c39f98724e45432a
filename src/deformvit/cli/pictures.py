"""``deformvit predict`` and ``figure``: what a model makes of images, and where it looks."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from deformvit.cli.inputs import DEFAULT_MODEL, names_for, need_classes, pixels, prepare, report, sources
from deformvit.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from deformvit.models.files import ModelInfo
    from deformvit.models.trace import Trace
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
    from deformvit.engine.runtime import pick_device

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

    from deformvit.figures import dense
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
        dense.detections(image, found, info.classes, threshold=threshold).save(picture)
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

    from deformvit.figures import dense

    failed: list[str] = []
    for name, _, image in _readable(inputs, output, failed):
        with torch.inference_mode():
            found = network.predict(image.to(place)).cpu()
        picture = output / f"{name}.png"
        dense.labels(image, found, info.classes).save(picture)
        dense.label_image(found, info.classes).save(output / f"{name}_labels.png")
        tqdm.write(str(picture), sys.stdout)
    return failed


def figure(
    kind: tyro.conf.Positional[Literal["points"]],
    images: tyro.conf.Positional[list[Path]],
    /,
    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = DEFAULT_MODEL,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("figures"),
    layers: tuple[int, ...] = (),
    format: Literal["png", "svg", "pdf"] = "png",
    dpi: int = 150,
    threshold: float = 0.5,
    device: str = "auto",
) -> None:
    """Draw where a model looks, one picture for each image.

    Args:
        kind: `points`: reference grid, offset arrows and deformed points by layer and group (Fig. 2 of the paper), with
            a detector over the objects it found, with a segmentation network over its labels (Fig. 6).
        images: image files and folders whose images are taken, subfolders included; or `photo` for the embedded photo,
            `sample` for test images of the embedded Fashion-MNIST.
        model: a file that `train` or `convert` wrote, or a name such as dat_nano.cifar10.
        output: folder to write to.
        layers: which deformable layers to draw, counted from 1; all by default.
        format: picture format.
        dpi: pixels per inch.
        threshold: detectors: score from which objects are drawn.
        device: a torch device; auto takes the GPU if there is one.
    """
    from deformvit import figures, systems
    from deformvit.engine.runtime import pick_device

    inputs, place = sources(images), pick_device(device)
    network, info = systems.load(model)
    network.to(place)
    output.mkdir(parents=True, exist_ok=True)
    failed = []
    for name, (_, source) in zip(names_for([name for name, _ in inputs]), inputs, strict=True):
        try:
            seen, title, recorded = _look(network, info, source, name, place, threshold)
        except UserError as error:
            failed.append(str(error))
            continue
        wrong = [number for number in layers if not 1 <= number <= len(recorded.layers)]
        if wrong:
            raise UserError(
                f"layers: there is no layer {wrong[0]}; {model} has {len(recorded.layers)} deformable layers"
            )
        chosen = [recorded.layers[number - 1] for number in layers] if layers else recorded.layers
        picture = figures.points(seen, chosen, title=title)
        target = output / f"{name}_{kind}.{format}"
        picture.savefig(target, dpi=dpi)
        print(target)
    report(failed)


def _look(
    network: nn.Module, info: ModelInfo, source: Any, name: str, place: torch.device, threshold: float
) -> tuple[Tensor, str, Trace]:
    """The image as the network saw it, with what it found drawn on it, a title, and its points."""
    import torch
    from torchvision.transforms.v2 import functional as images_v2

    from deformvit import systems
    from deformvit.figures import dense
    from deformvit.models import trace

    if isinstance(network, systems.Detector | systems.Segmenter):
        image = pixels(source)
        image = images_v2.resize(image, list(network.input_size(image.shape[1], image.shape[2])), antialias=True)
        with torch.inference_mode(), trace.record_points(network) as recorded:
            if isinstance(network, systems.Detector):
                found = network([image.to(place)])[0]
                drawn = dense.detections(image, found, info.classes, threshold=threshold, names=False)
                title = f"{name}: {int((found['scores'] >= threshold).sum())} objects"
            else:
                labels = network.predict(image.to(place))
                drawn = dense.labels(image, labels, info.classes).crop((0, 0, image.shape[2], image.shape[1]))
                title = name
        return images_v2.to_dtype(images_v2.pil_to_tensor(drawn), scale=True), title, recorded
    image = prepare(source, info)
    mean, std = (torch.tensor(values)[:, None, None] for values in (info.mean, info.std))
    with torch.inference_mode(), trace.record_points(network) as recorded:
        logits = network(image[None].to(place))
    title = name
    if info.classes:  # a detector's backbone has none
        chances = logits.float().softmax(-1)[0].cpu()
        best = int(chances.argmax())
        title = f"{name}: {info.classes[best]} {100 * chances[best]:.0f} %"
    return image * std + mean, title, recorded
