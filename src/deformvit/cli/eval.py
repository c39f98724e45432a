"""``deformvit eval``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from deformvit.cli.inputs import DEFAULT_MODEL, need_classes, print_values
from deformvit.config import SegmentationDataConfig
from deformvit.errors import UserError

if TYPE_CHECKING:
    from deformvit.models.files import ModelInfo
    from deformvit.systems import Detector, Segmenter
    from deformvit.tasks.loading import Evaluated


def evaluate(
    data: Annotated[str, tyro.conf.arg(aliases=["-d"])],
    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = DEFAULT_MODEL,
    batch_size: int = 256,
    workers: int = 1,
    device: str = "auto",
    resize: Literal["", "shorter", "square"] = "",
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    window: int = 0,
    window_stride: int = 0,
    results: Path | None = None,
) -> None:
    """Measure a model file or packaged weights on the validation split: accuracy, average precision or mIoU.

    Under torchrun the images of detectors and segmentation networks are shared among its processes.

    Args:
        data: a folder, parquet files or `sample`, as in training.
        model: a file that `train` or `convert` wrote, or a name such as dat_nano.cifar10.
        batch_size: classifiers: images per step.
        workers: loader processes.
        device: a torch device; auto takes the GPU if there is one.
        resize: classifiers: how images are resized, if not as the model file says.
        scales: segmentation: average over these multiples of the size; multi-scale is 0.5 0.75 1.0 1.25 1.5 1.75.
        flip: segmentation: average over mirrored images too.
        window: segmentation: slide a window of this side over the image; 0 takes the whole image.
        window_stride: segmentation: its step; two thirds of the window by default.
        results: detectors: write the detections to this file, in COCO's format.
    """
    from deformvit import distributed, systems
    from deformvit.devices import pick_device

    if batch_size < 1 or workers < 0:
        raise UserError(f"batch_size must be at least 1 and workers at least 0, got {batch_size} and {workers}")
    if not scales or min(scales) <= 0 or window < 0 or window_stride < 0:
        raise UserError(
            f"scales must be positive, window and window_stride not negative, got {scales}, {window}, {window_stride}"
        )
    with distributed.process_group():
        place = pick_device(device)
        network, info = systems.load(model)
        network.to(place)
        shown = sys.stderr.isatty()
        if isinstance(network, systems.Detector):
            found = _detector(network, info, data, place, workers, results, shown)
        elif isinstance(network, systems.Segmenter):
            settings = SegmentationDataConfig(
                root=data, workers=workers, scale=network.scale, ignore_label=network.ignore_label,
                reduce_zero_label=bool(info.system["inputs"]["reduce_zero_label"]), eval_scales=scales, eval_flip=flip,
                window=window, window_stride=window_stride,
            )  # fmt: skip
            found = _segmenter(network, info, settings, place, shown)
        else:
            found = _classifier(network, info, model, data, place, batch_size, workers, resize, shown)
        if distributed.rank() == 0:
            print_values(found)


def _detector(
    network: Detector, info: ModelInfo, data: str, place: Any, workers: int, results: Path | None, shown: bool
) -> list[tuple[str, str]]:
    import json

    from deformvit import distributed
    from deformvit.data import detection as coco
    from deformvit.storage import write_atomically
    from deformvit.tasks import detection, loading

    images = detection.open_evaluation(data, network.has_masks, info.classes)
    if distributed.rank() == 0:
        for problem in images.problems:
            print(f"deformvit: {problem}", file=sys.stderr)
    batches = loading.Evaluated(images, coco.collate, 1, workers)
    metrics, found = detection.evaluate(network, batches, place, shown)
    if results is not None and distributed.rank() == 0:
        write_atomically(results, lambda path: path.write_text(json.dumps(found)))
    return [("images", _count(batches)), *((name, f"{value:.2f}") for name, value in metrics.items())]


def _segmenter(
    network: Segmenter, info: ModelInfo, settings: SegmentationDataConfig, place: Any, shown: bool
) -> list[tuple[str, str]]:
    from torch.utils.data import default_collate

    from deformvit.tasks import loading, segmentation

    images = segmentation.open_evaluation(settings, info.classes)
    batches = loading.Evaluated(images, default_collate, 1, settings.workers)
    metrics = segmentation.evaluate(network, batches, settings, place, shown, info.classes)
    return [("images", _count(batches)), *((name, f"{value:.2f}") for name, value in metrics.items())]


def _classifier(
    network: Any, info: ModelInfo, model: str, data: str, place: Any, batch_size: int, workers: int, resize: str,
    shown: bool,
) -> list[tuple[str, str]]:  # fmt: skip
    from torch.utils.data import default_collate

    from deformvit.data import DataError, eval_transform, open_split
    from deformvit.tasks import classification, loading

    need_classes(model, info)
    transform = eval_transform(info.img_size, info.crop_pct, resize or info.resize, info.mean, info.std)
    images = open_split(data, "val", transform)
    numbered = info.classes == [str(i) for i in range(len(images.classes))]  # a converted file that was given no names
    if list(images.classes) != list(info.classes) and not numbered:
        raise DataError(
            f"{data} has classes {', '.join(images.classes[:5])}, ... ({len(images.classes)}), but {model} knows "
            f"{', '.join(info.classes[:5])}, ... ({len(info.classes)})"
        )
    batches = loading.Evaluated(images, default_collate, batch_size, workers)
    metrics = classification.evaluate(network, batches, place, shown)
    return [("images", _count(batches)), *((name, f"{value:.4g}") for name, value in metrics.items())]


def _count(batches: Evaluated[Any]) -> str:
    """How many images were measured."""
    return str(len(batches.images) - len(batches.left_out()))
