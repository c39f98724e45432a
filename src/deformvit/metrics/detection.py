"""COCO's average precision of boxes and masks, computed by faster_coco_eval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deformvit.data.annotations import Unusable, read_box, read_coco, read_segmentation, run_lengths
from deformvit.errors import DataError, UserError

Prediction = dict[str, Tensor]
"""``boxes`` (n, 4), x1, y1, x2, y2 in pixels of the original image; ``scores`` (n,); ``labels`` (n,) from 0; optionally
``masks`` bool (n, H, W) of the size of the original image. On any device."""


def from_torchvision(prediction: Prediction) -> Prediction:
    """What a detector of torchvision predicts as this package has it: labels from 0, masks bool (n, H, W).

    Args:
        prediction: ``labels`` (n,) from 1 and optionally ``masks`` (n, 1, H, W) from 0 to 1; the rest stays as it is.

    Raises:
        UserError: a label below 1.
    """
    labels = prediction["labels"]
    if labels.numel() and int(labels.min()) < 1:
        raise UserError(f"torchvision's labels count from 1, got {int(labels.min())}")
    converted = prediction | {"labels": labels - 1}
    return converted | {"masks": prediction["masks"][:, 0] >= 0.5} if "masks" in prediction else converted


class CocoMetrics:
    """Collects detections and compares them with the objects of a file in COCO's format.

    Objects count as in COCO: detections of crowds are ignored and so are missed crowds; small objects have less than
    32² pixels, large ones more than 96². Annotations that cannot be evaluated (of unknown images or categories, without
    a readable box or, for masks, a readable segmentation) are left out, as :class:`deformvit.data.detection.CocoImages`
    leaves them out and reports.

    Args:
        ground_truth: the JSON file, one that CocoImages opens.
        category_ids: category id of every label.
        image_ids: the images to evaluate; objects and detections of others do not count.
        masks: whether to evaluate masks too.
        max_detections: how many detections of an image count, those of highest score.

    Raises:
        DataError: the file cannot be read or lacks some of the images.
        ModuleNotFoundError: faster_coco_eval is not installed.
    """

    def __init__(
        self,
        ground_truth: Path,
        category_ids: Sequence[int],
        image_ids: Sequence[int],
        masks: bool,
        max_detections: int = 100,
    ) -> None:
        import faster_coco_eval  # noqa: F401  # fails here rather than after a training if it is missing

        self.category_ids, self.image_ids, self.masks = list(category_ids), sorted(set(image_ids)), masks
        self.max_detections = max_detections
        self.results: list[dict[str, Any]] = []
        """Detections in COCO's results format, JSON-ready."""
        self._truth = _truth(ground_truth, self.category_ids, self.image_ids, masks)

    def update(self, image_id: int, prediction: Prediction) -> None:
        """Adds the detections of an image, once for each image."""
        self.results += coco_results(image_id, prediction, self.category_ids)

    def merge(self, others: Iterable[list[dict[str, Any]]]) -> None:
        """Adds the ``results`` of other processes; of an image that several evaluated, the first ones count."""
        for other in others:
            present = {result["image_id"] for result in self.results}
            self.results += [result for result in other if result["image_id"] not in present]

    def leave_out(self, image_ids: Sequence[int]) -> None:
        """Excludes images that could not be evaluated; their objects do not count as missed."""
        excluded = set(image_ids)
        self.image_ids = [image_id for image_id in self.image_ids if image_id not in excluded]

    def compute(self) -> dict[str, float]:
        """Average precisions in percent: ``box_AP``, ``box_AP50``, ``box_AP75`` and, by size, ``box_APs``, ``box_APm``
        and ``box_APl``; the same of masks as ``mask_AP`` and so on. nan where the ground truth has no such objects."""
        values = self._average_precisions("box")
        return values | self._average_precisions("mask") if self.masks else values

    def _average_precisions(self, kind: str) -> dict[str, float]:
        from faster_coco_eval import COCO, COCOeval_faster

        truth = COCO(self._truth)
        # Copies, as the evaluator writes into results. For masks without boxes, from which it would take their areas.
        dropped = "bbox" if kind == "mask" else "segmentation"
        evaluated = set(self.image_ids)
        results = [
            {name: value for name, value in result.items() if name != dropped}
            for result in sorted(self.results, key=lambda result: result["image_id"])
            if result["image_id"] in evaluated
        ]
        # Versions before 1.8 cannot load an empty list of results.
        detections = truth.loadRes(results) if results else COCO({**self._truth, "annotations": []})
        evaluation = COCOeval_faster(truth, detections, "segm" if kind == "mask" else "bbox")
        evaluation.params.imgIds = self.image_ids
        evaluation.params.maxDets = sorted({min(count, self.max_detections) for count in (1, 10, self.max_detections)})
        evaluation.evaluate()
        evaluation.accumulate()
        # Axes: IoU thresholds, recalls, categories, sizes (all, small, medium, large), numbers of detections.
        precision = np.asarray(evaluation.eval["precision"])[..., -1]
        parts = {
            "": precision[..., 0], "50": precision[0, ..., 0], "75": precision[5, ..., 0],
            "s": precision[..., 1], "m": precision[..., 2], "l": precision[..., 3],
        }  # fmt: skip
        return {f"{kind}_AP{name}": _percent(part) for name, part in parts.items()}


def coco_results(image_id: int, prediction: Prediction, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Detections of an image in COCO's results format, JSON-ready.

    Detections whose box or score is not finite are left out.

    Returns:
        Each with ``image_id``, ``category_id``, ``bbox`` (x, y, width, height in pixels), ``score`` and, for masks,
        ``segmentation``, a compressed run-length encoding.

    Raises:
        ValueError: a label without a category id.
    """
    boxes, scores = prediction["boxes"].detach().double().cpu(), prediction["scores"].detach().double().cpu()
    labels = prediction["labels"].cpu()
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(category_ids):
        raise ValueError(f"labels from {labels.min()} to {labels.max()}, but {len(category_ids)} category ids")
    kept = torch.nonzero(boxes.isfinite().all(1) & scores.isfinite()).flatten()
    boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
    boxes = torch.cat((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), 1)
    results: list[dict[str, Any]] = [
        {"image_id": int(image_id), "category_id": category_ids[label], "bbox": box, "score": score}
        for box, score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True)
    ]
    if "masks" in prediction and results:
        masks = prediction["masks"].detach()
        for result, mask in zip(results, _encode(masks[kept.to(masks.device)]), strict=True):
            result["segmentation"] = mask
    return results


def _encode(masks: Tensor) -> list[dict[str, Any]]:
    """Compressed run-length encodings of bool (n, H, W), n > 0."""
    from faster_coco_eval.core import mask

    columns = masks.to(torch.uint8).transpose(1, 2).contiguous().cpu().numpy()  # run lengths go down the columns
    return [
        {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}
        for encoded in mask.encode(columns.transpose(2, 1, 0))
    ]


def _truth(path: Path, category_ids: list[int], image_ids: list[int], masks: bool) -> dict[str, list[Any]]:
    """The ground truth for the evaluator: images and annotations of ``image_ids``, with masks as run lengths."""
    content = read_coco(path)
    images = {entry["id"]: entry for entry in content["images"]}
    missing = [image_id for image_id in image_ids if image_id not in images]
    if missing:
        raise DataError(f"{path}: no image has the id {missing[0]}")
    images = {image_id: _image(images[image_id]) for image_id in image_ids}
    categories = [entry for entry in content["categories"] if entry["id"] in category_ids]
    known = {entry["id"] for entry in categories}
    annotations: list[dict[str, Any]] = []
    ids: set[Any] = set()
    for entry in content["annotations"]:
        annotation_id, image_id, category_id = (entry.get(name) for name in ("id", "image_id", "category_id"))
        if type(image_id) is not int or image_id not in images:
            continue
        if type(category_id) is not int or category_id not in known:
            continue
        if isinstance(annotation_id, int | str):
            if annotation_id in ids:
                continue
            ids.add(annotation_id)
        try:
            annotation = _annotation(entry, images[image_id], masks)
        except Unusable:
            continue
        annotations.append(annotation | {"id": len(annotations) + 1})  # the evaluator takes id 0 for no object
    return {"images": list(images.values()), "categories": categories, "annotations": annotations}


def _image(entry: dict[str, Any]) -> dict[str, int]:
    """Id and size of an image; a missing height or width is 0."""
    sides = {name: entry.get(name) for name in ("height", "width")}
    return {"id": entry["id"], **{name: side if type(side) is int else 0 for name, side in sides.items()}}


def _annotation(entry: dict[str, Any], image: dict[str, int], masks: bool) -> dict[str, Any]:
    """An annotation in the form that the evaluator reads.

    Raises:
        Unusable: it cannot be evaluated.
        DataError: polygons on an image of unknown size.
    """
    box = read_box(entry.get("bbox"))
    annotation = {
        "image_id": entry["image_id"], "category_id": entry["category_id"], "bbox": list(box),
        "iscrowd": int(bool(entry.get("iscrowd"))), "area": entry.get("area"),
    }  # fmt: skip
    if masks:
        from faster_coco_eval.core import mask

        segmentation = read_segmentation(entry.get("segmentation"))
        height, width = segmentation["size"] if isinstance(segmentation, dict) else (image["height"], image["width"])
        if not height or not width:
            raise DataError(f"image {image['id']} of the ground truth has no height and width, which polygons need")
        annotation["segmentation"] = run_lengths(segmentation, height, width)
    if not isinstance(annotation["area"], int | float) or not math.isfinite(annotation["area"]):
        annotation["area"] = float(mask.area(annotation["segmentation"])) if masks else box[2] * box[3]
    return annotation


def _percent(precision: np.ndarray[Any, Any]) -> float:
    """Mean in percent of the defined values; the evaluator writes -1 where there are no objects."""
    defined = precision[precision > -1]
    return 100 * float(defined.mean()) if defined.size else math.nan
