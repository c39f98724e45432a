"""``deformvit eval``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from deformvit.cli import confusion
from deformvit.cli.inputs import DEFAULT_MODEL, print_values, refuse_existing
from deformvit.errors import UserError

if TYPE_CHECKING:
    from deformvit.inference import ClassificationPredictor, DetectionPredictor, SegmentationPredictor


def run(
    data: Annotated[str, tyro.conf.arg(aliases=["-d"])],
    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = DEFAULT_MODEL,
    batch_size: int = 256,
    workers: int = 1,
    device: str = "auto",
    resize: Literal["", "shorter", "square"] = "",
    holdout: float = 0.1,
    holdout_seed: int = 0,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    window: int = 0,
    window_stride: int = 0,
    results: Path | None = None,
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
) -> None:
    """Measure a model file or packaged weights on the validation split: accuracy, average precision or mIoU.

    Of classifiers the accuracy of every class is printed too, with what its images are taken for. Under torchrun the
    images are shared among its processes.

    Args:
        data: a folder, parquet files or `sample`, as in training.
        model: a model file, a run's folder, a folder of the Hugging Face hub, or a name such as dat_nano.cifar10.
        batch_size: classifiers: images per step.
        workers: loader processes.
        device: a torch device; auto takes the GPU if there is one.
        resize: classifiers: how images are resized, if not as the model file says.
        holdout: classifiers: where a folder has no validation images, the share of each class that training held out;
            1 measures all images, of a model that was trained on others.
        holdout_seed: classifiers: which images those are, as in training.
        scales: segmentation: average over these multiples of the size; multi-scale is 0.5 0.75 1.0 1.25 1.5 1.75.
        flip: segmentation: average over mirrored images too.
        window: segmentation: slide a window of this side over the image; 0 takes the whole image.
        window_stride: segmentation: its step; two thirds of the window by default.
        results: detectors: write the detections to this file, in COCO's format.
        output: classifiers: write the confusion matrix to this folder, as confusion.png and confusion.json.
    """
    from deformvit import distributed
    from deformvit.inference import load

    if batch_size < 1 or workers < 0:
        raise UserError(f"batch_size must be at least 1 and workers at least 0, got {batch_size} and {workers}")
    if not scales or min(scales) <= 0 or window < 0 or window_stride < 0:
        raise UserError(
            f"scales must be positive, window and window_stride not negative, got {scales}, {window}, {window_stride}"
        )
    with distributed.process_group():
        predictor: Any = load(model, device=device)
        if output is not None:
            _check_output(output, predictor.task)
        shown = sys.stderr.isatty()
        if predictor.task == "detection":
            found = _detector(predictor, data, workers, results, shown)
        elif predictor.task == "segmentation":
            options = {"eval_scales": scales, "eval_flip": flip, "window": window, "window_stride": window_stride}
            found = _segmenter(predictor, data, workers, options, shown)
        else:
            _classifier(predictor, data, batch_size, workers, (resize, holdout, holdout_seed), output, shown)
            return
        if distributed.rank() == 0:
            print_values(found)


def _check_output(output: Path, task: str) -> None:
    """Raise ``UserError`` where nothing would be written, or something be overwritten."""
    from deformvit.metrics.classification import CONFUSION

    if task != "classification":
        raise UserError(f"output is for classifiers, and this model is for {task}; detections are written to --results")
    refuse_existing([output / CONFUSION, (output / CONFUSION).with_suffix(".png")])
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output}: no folder can be made there: {error.strerror}") from error


Rows = list[tuple[str, str]]


def _detector(predictor: DetectionPredictor, data: str, workers: int, results: Path | None, shown: bool) -> Rows:
    import json

    from deformvit import distributed
    from deformvit.data import detection as coco
    from deformvit.storage import write_atomically
    from deformvit.tasks import detection, loading

    images = detection.open_evaluation(data, predictor.model.has_masks, predictor.classes)
    if distributed.rank() == 0:
        for problem in images.problems:
            print(f"deformvit: {problem}", file=sys.stderr)
    batches = loading.EvalLoader(images, coco.collate, 1, workers)
    metrics, found = detection.evaluate(predictor.model, batches, predictor.device, shown)
    if results is not None and distributed.rank() == 0:
        write_atomically(results, lambda path: path.write_text(json.dumps(found)))
    return [("images", batches.measured()), *((name, f"{value:.2f}") for name, value in metrics.items())]


def _segmenter(predictor: SegmentationPredictor, data: str, workers: int, options: dict[str, Any], shown: bool) -> Rows:
    from torch.utils.data import default_collate

    from deformvit.config import SegmentationDataConfig
    from deformvit.tasks import loading, segmentation

    described = predictor.description
    settings = SegmentationDataConfig(
        root=data, workers=workers, scale=described.scale, ignore_label=described.ignore_label,
        reduce_zero_label=described.reduce_zero_label, **options,
    )  # fmt: skip
    images = segmentation.open_evaluation(settings, predictor.classes)
    batches = loading.EvalLoader(images, default_collate, 1, workers)
    metrics = segmentation.evaluate(predictor.model, batches, settings, predictor.device, shown, predictor.classes)
    return [("images", batches.measured()), *((name, f"{value:.2f}") for name, value in metrics.items())]


def _classifier(
    predictor: ClassificationPredictor, data: str, batch_size: int, workers: int, options: tuple[str, float, int],
    output: Path | None, shown: bool,
) -> None:  # fmt: skip
    from torch.utils.data import default_collate

    from deformvit import distributed
    from deformvit.models.files import short_name
    from deformvit.tasks import classification, loading

    images = classification.open_evaluation(data, predictor.description, predictor.name, *options)
    batches = loading.EvalLoader(images, default_collate, batch_size, workers)
    metrics, found = classification.evaluate(predictor.model, batches, images.classes, predictor.device, shown)
    measured = batches.measured()
    if distributed.rank() == 0:
        print_values([("images", measured), *((name, f"{value:.4g}") for name, value in metrics.items())])
        confusion.print_by_class(found)
        if output is not None:
            confusion.write(found, metrics, output, short_name(predictor.name))
