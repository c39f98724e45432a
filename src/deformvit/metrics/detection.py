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
from deformvit.errors import DataError

Prediction = dict[str, Tensor]
"""``boxes`` (n, 4), x1, y1, x2, y2 in pixels of the original image; ``scores`` (n,); ``labels`` (n,) from 0; optionally
``masks`` bool (n, H, W) of the size of the original image. On any device."""


class CocoMetrics:
    """Collects detections and compares them with the objects of a file in COCO's format.

    Objects count as COCO counts them: crowds are neither to be found nor wrong to find, small objects have less than
    32² pixels, large ones more than 96². Annotations that cannot be evaluated (of unknown images or categories, without
    a readable box or, for masks, a readable segmentation) are left out, as :class:`deformvit.data.detection.CocoImages`
    leaves them out and reports.

    Args:
        ground_truth: the JSON file, one that CocoImages opens.
        category_ids: category id of every label.
        image_ids: the images to evaluate; objects and detections of others do not count.
        masks: whether to evaluate masks too.
        max_detections: the best detections of an image that count.

    Raises:
        DataError: a file that cannot be read, or one without some of the images.
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
        import faster_coco_eval  # noqa: F401  # if it is not installed, then said before anything is computed

        self.category_ids, self.image_ids, self.masks = list(category_ids), sorted(set(image_ids)), masks
        self.max_detections = max_detections
        self.results: list[dict[str, Any]] = []
        """Detections in COCO's format for results, plain data for JSON."""
        self._truth = _truth(ground_truth, self.category_ids, self.image_ids, masks)

    def update(self, image_id: int, prediction: Prediction) -> None:
        """Adds the detections of an image, once for each image."""
        self.results += coco_results(image_id, prediction, self.category_ids)

    def merge(self, others: Iterable[list[dict[str, Any]]]) -> None:
        """Adds the ``results`` of other processes, but for images that are already here: samplers repeat some."""
        for other in others:
            present = {result["image_id"] for result in self.results}
            self.results += [result for result in other if result["image_id"] not in present]

    def leave_out(self, image_ids: Sequence[int]) -> None:
        """Images that could not be evaluated: their objects are not to be found."""
        self.image_ids = [number for number in self.image_ids if number not in set(image_ids)]

    def compute(self) -> dict[str, float]:
        """Average precisions in percent: ``box_AP``, ``box_AP50``, ``box_AP75`` and, by size, ``box_APs``, ``box_APm``
        and ``box_APl``; the same of ``mask_``. nan where there are no objects to find."""
        values = self._average_precisions("box")
        return values | self._average_precisions("mask") if self.masks else values

    def _average_precisions(self, kind: str) -> dict[str, float]:
        from faster_coco_eval import COCO, COCOeval_faster

        truth = COCO(self._truth)
        # Copies, as the evaluator writes into results. Those of masks lose their boxes, by which it would size them.
        dropped = "bbox" if kind == "mask" else "segmentation"
        wanted = set(self.image_ids)
        results = [
            {name: value for name, value in result.items() if name != dropped}
            for result in sorted(self.results, key=lambda result: result["image_id"])
            if result["image_id"] in wanted
        ]
        # Before 1.8, no results cannot be loaded.
        found = truth.loadRes(results) if results else COCO({**self._truth, "annotations": []})
        evaluation = COCOeval_faster(truth, found, "segm" if kind == "mask" else "bbox")
        evaluation.params.imgIds = self.image_ids
        evaluation.params.maxDets = sorted({min(count, self.max_detections) for count in (1, 10, self.max_detections)})
        evaluation.evaluate()
        evaluation.accumulate()
        # Thresholds of overlap, recalls, categories, sizes (all, small, medium, large), numbers of detections.
        precision = np.asarray(evaluation.eval["precision"])[..., -1]
        parts = {
            "": precision[..., 0], "50": precision[0, ..., 0], "75": precision[5, ..., 0],
            "s": precision[..., 1], "m": precision[..., 2], "l": precision[..., 3],
        }  # fmt: skip
        return {f"{kind}_AP{name}": _percent(part) for name, part in parts.items()}


def coco_results(image_id: int, prediction: Prediction, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Detections of an image in COCO's format for results, plain data for JSON.

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

    columns = masks.to(torch.uint8).transpose(1, 2).contiguous().cpu().numpy()  # runs go down the columns
    return [
        {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}
        for encoded in mask.encode(columns.transpose(2, 1, 0))
    ]


def _truth(path: Path, category_ids: list[int], image_ids: list[int], masks: bool) -> dict[str, list[Any]]:
    """What the evaluator reads of a file: images and annotations of ``image_ids``, with masks as run lengths."""
    content = read_coco(path)
    images = {entry["id"]: entry for entry in content["images"]}
    missing = [number for number in image_ids if number not in images]
    if missing:
        raise DataError(f"{path}: no image has the id {missing[0]}")
    images = {number: _image(images[number]) for number in image_ids}
    categories = [entry for entry in content["categories"] if entry["id"] in category_ids]
    known = {entry["id"] for entry in categories}
    annotations: list[dict[str, Any]] = []
    seen: set[Any] = set()
    for entry in content["annotations"]:
        number, image, category = (entry.get(name) for name in ("id", "image_id", "category_id"))
        if type(image) is not int or image not in images or type(category) is not int or category not in known:
            continue
        if isinstance(number, int | str):
            if number in seen:
                continue
            seen.add(number)
        try:
            found = _object(entry, images[image], masks)
        except Unusable:
            continue
        annotations.append(found | {"id": len(annotations) + 1})  # to the evaluator, 0 means no object
    return {"images": list(images.values()), "categories": categories, "annotations": annotations}


def _image(entry: dict[str, Any]) -> dict[str, int]:
    """Id and size; 0 for a size that is not said."""
    sides = {name: entry.get(name) for name in ("height", "width")}
    return {"id": entry["id"], **{name: side if type(side) is int else 0 for name, side in sides.items()}}


def _object(entry: dict[str, Any], image: dict[str, int], masks: bool) -> dict[str, Any]:
    """An annotation as the evaluator needs it.

    Raises:
        Unusable: it cannot be evaluated.
        DataError: polygons on an image of unknown size.
    """
    box = read_box(entry.get("bbox"))
    found = {
        "image_id": entry["image_id"], "category_id": entry["category_id"], "bbox": list(box),
        "iscrowd": int(bool(entry.get("iscrowd"))), "area": entry.get("area"),
    }  # fmt: skip
    if masks:
        from faster_coco_eval.core import mask

        shape = read_segmentation(entry.get("segmentation"))
        height, width = shape["size"] if isinstance(shape, dict) else (image["height"], image["width"])
        if not height or not width:
            raise DataError(f"image {image['id']} of the ground truth has no height and width, which polygons need")
        found["segmentation"] = run_lengths(shape, height, width)
    if not isinstance(found["area"], int | float) or not math.isfinite(found["area"]):
        found["area"] = float(mask.area(found["segmentation"])) if masks else box[2] * box[3]
    return found


def _percent(precision: np.ndarray[Any, Any]) -> float:
    """Mean of what is defined; the evaluator marks by -1 what has no objects to find."""
    defined = precision[precision > -1]
    return 100 * float(defined.mean()) if defined.size else math.nan
