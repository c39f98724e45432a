"""RetinaNet, Mask R-CNN and Cascade Mask R-CNN: any sizes, images without objects, batches, learning."""

from __future__ import annotations

import json

import pytest
import torch
from torchvision import tv_tensors
from torchvision.models.detection.image_list import ImageList

from deformvit import UserError
from deformvit.data.detection_transforms import ShortestSize
from deformvit.metrics.detection import CocoMetrics
from deformvit.systems.cascade import CascadeRoIHeads
from deformvit.systems.pyramid import Anchors, roi_pool

SYSTEMS = ["retinanet", "mask_rcnn", "cascade_mask_rcnn"]
RPN = {"loss_objectness", "loss_rpn_box_reg"}
LOSSES = {
    "retinanet": {"classification", "bbox_regression"},
    "mask_rcnn": {"loss_classifier", "loss_box_reg", "loss_mask", *RPN},
    "cascade_mask_rcnn": {f"loss_{part}_{i}" for part in ("classifier", "box_reg", "mask") for i in (1, 2, 3)} | RPN,
}


def nothing(height: int, width: int) -> dict[str, torch.Tensor]:
    """The target of an image without objects."""
    masks = torch.zeros(0, height, width, dtype=torch.uint8)
    return {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "masks": masks}


def confident(detector):
    """An untrained RetinaNet with threshold 0 and scores that differ: its scores start near 0.01, all much alike."""
    if detector.config.system == "retinanet":
        detector.network.score_thresh = 0.0
        torch.nn.init.normal_(detector.network.head.classification_head.cls_logits.weight, std=0.5)
    return detector.eval()


@pytest.mark.parametrize("system", SYSTEMS)
def test_detections_do_not_depend_on_the_batch(make_detector, system):
    detector = confident(make_detector(system))
    small, large = torch.rand(3, 41, 67), torch.rand(3, 97, 80)
    with torch.inference_mode():
        together = detector([small, large, small.flip(2)])
        alone = [detector([image])[0] for image in (small, large, small.flip(2))]
    for one, other in zip(together, alone, strict=True):
        assert len(one["boxes"]) > 0
        torch.testing.assert_close(one["scores"], other["scores"], atol=1e-4, rtol=1e-4)
        apart = torch.cdist(
            one["boxes"].double(), other["boxes"].double()
        )  # detections of equal scores may change places
        assert max(apart.amin(0).max(), apart.amin(1).max()) < 1e-2


@pytest.mark.parametrize("system", SYSTEMS)
def test_detections_are_of_the_image_and_repeat(make_detector, system):
    detector = confident(make_detector(system, eval_size=48))
    image = torch.rand(3, 90, 130)
    with torch.inference_mode():
        found, again = detector([image])[0], detector([image])[0]
    assert all(torch.equal(found[name], again[name]) for name in found)
    boxes = found["boxes"]
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= 130 + 1e-3
    assert boxes[:, 3].max() <= 90 + 1e-3
    assert boxes[:, 2].max() > 90  # coordinates are not those of the image resized to 48 x 69
    assert found["labels"].min() >= 0
    assert found["labels"].max() <= 1
    assert (found["scores"].diff() <= 0).all()
    assert ("masks" in found) == (system != "retinanet")
    if "masks" in found:
        assert found["masks"].shape == (len(boxes), 90, 130)
        assert found["masks"].dtype == torch.bool


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", ["dat_nano", "swin_tiny_patch4_window7_224"])
def test_training_with_and_without_objects(make_detector, sample, system, name):
    head = {"box_head": "4conv1fc"} if system == "cascade_mask_rcnn" else {}
    detector = make_detector(system, name=name, **head)
    image, target = sample
    losses = detector([image, torch.rand(3, 50, 71)], [target, nothing(50, 71)])
    assert set(losses) == LOSSES[system]
    assert all(loss.ndim == 0 and 0 < loss < 100 for loss in losses.values())
    sum(losses.values()).backward()
    without = [name for name, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    # Without objects there is nothing to learn but that all is background.
    for loss_name, loss in detector([torch.rand(3, 50, 71)], [nothing(50, 71)]).items():
        assert (0 < loss < 100) if "class" in loss_name or "objectness" in loss_name else loss == 0


@pytest.mark.parametrize("sizes", [(800, 1333), (64, 48), (33, 99)])
def test_training_and_evaluation_resize_to_the_same_size(make_detector, sizes):
    """And never beyond the largest side, even where the shorter one is asked to be longer."""
    shorter, longest = sizes
    detector = make_detector("retinanet", eval_size=shorter)
    detector.max_size = longest
    for height, width in ((427, 640), (500, 334), (1, 900), (3, 3000), (610, 640), (100, 300), (61, 77)):
        image = tv_tensors.Image(torch.zeros(3, height, width, dtype=torch.uint8))
        size = tuple(ShortestSize((shorter,), longest)(image).shape[1:])
        assert size == detector.input_size(height, width)
        assert max(size) <= longest


def test_losses_are_the_mean_over_images(make_detector, sample):
    detector = make_detector("retinanet")
    image, target = sample
    other = torch.rand(3, 50, 71)
    both = detector([image, other], [target, nothing(50, 71)])
    one, two = detector([image], [target]), detector([other], [nothing(50, 71)])
    for name in both:
        torch.testing.assert_close(both[name], (one[name] + two[name]) / 2)


def test_boxes_and_masks_return_to_the_image(make_detector):
    detector = make_detector("mask_rcnn")
    result = {
        "boxes": torch.tensor([[4.0, 6.0, 12.0, 10.0]]), "scores": torch.tensor([0.9]), "labels": torch.tensor([2]),
        "masks": torch.ones(1, 1, 28, 28),
    }  # fmt: skip
    found = detector._to_image(result, (20, 30), (40, 90))  # twice as high, three times as wide
    assert found["boxes"].tolist() == [[12, 12, 36, 20]]
    assert found["labels"].tolist() == [1]
    rows, columns = torch.where(found["masks"][0])
    assert (rows.min().item(), rows.max().item()) == (pytest.approx(12, abs=1), pytest.approx(20, abs=1))
    assert (columns.min().item(), columns.max().item()) == (pytest.approx(12, abs=1), pytest.approx(36, abs=1))


def test_anchors_lie_at_the_true_strides():
    """torchvision divides 37 rows by 3 cells and gets 12 pixels where a cell has 16."""
    maps = [torch.zeros(1, 8, 10, 13), torch.zeros(1, 8, 5, 7), torch.zeros(1, 8, 3, 4)]
    anchors = Anchors([4, 8, 16], scale=4.0)(ImageList(torch.zeros(2, 3, 37, 50), [(37, 50)] * 2), maps)
    assert len(anchors) == 2
    assert torch.equal(anchors[0], anchors[1])
    centres = (anchors[0][:, :2] + anchors[0][:, 2:]) / 2
    last = centres[-3 * 12 :].view(3, 4, 3, 2)  # rows, columns, ratios, (x, y)
    assert last[2, 3, 1].tolist() == [48, 32]
    sides = (anchors[0][:, 2:] - anchors[0][:, :2])[:: 3 * 130]
    assert sides[0].prod().item() == pytest.approx(16**2, rel=0.1)


def test_regions_are_pooled_at_the_true_scale():
    """torchvision guesses a scale of 1 / 8 for a map of 3 rows of an image of 33, whose stride is 16."""
    pool = roi_pool([4, 8, 16], 1)
    columns = torch.arange(9.0).expand(1, 1, 9, 9)
    maps = {"0": columns, "1": torch.zeros(1, 1, 5, 5), "2": torch.zeros(1, 1, 3, 3)}
    pooled = pool(maps, [torch.tensor([[16.0, 0.0, 28.0, 33.0]])], [(33, 33)])
    assert pooled.item() == pytest.approx(5.5 - 0.5, abs=0.51)  # x = 22, in cells of four pixels
    assert pool.scales == [1 / 4, 1 / 8, 1 / 16]
    levels = pool.map_levels([torch.tensor([[0.0, 0.0, side, side]]) for side in (20.0, 130.0, 230.0)])
    assert levels.tolist() == [0, 1, 2]


def test_cascade_boxes_for_each_class(make_detector, sample):
    image, target = sample
    agnostic = make_detector("cascade_mask_rcnn", classes=5)
    specific = make_detector("cascade_mask_rcnn", classes=5, class_agnostic=False)
    count = [sum(p.numel() for p in model.parameters()) for model in (agnostic, specific)]
    assert count[1] - count[0] == 3 * (64 + 1) * 4 * (5 - 1)
    sum(specific([image], [target]).values()).backward()
    with torch.inference_mode():
        found = confident(specific)([image])[0]
    assert len(found["boxes"]) > 0


def test_cascade_selects_last_boxes_and_mean_scores():
    """Boxes come from the last stage, scores are the mean of all: seen with stages that give known values."""

    class Fixed(torch.nn.Module):
        def __init__(self, logit, shift):
            super().__init__()
            self.logit, self.shift = logit, shift

        def forward(self, features):
            n = len(features)
            return torch.tensor([[0.0, self.logit]]).expand(n, 2), torch.tensor([[self.shift, 0.0, 0.0, 0.0]]).expand(
                n, 4
            )

        def masks(self, features):
            return torch.zeros(len(features), 2, 28, 28)

    heads = CascadeRoIHeads(
        torch.nn.Identity, 4, torch.nn.Identity, 2, batch_size_per_image=8, positive_fraction=0.25, score_thresh=0.05,
        nms_thresh=0.5, detections_per_img=10, box_roi_pool=roi_pool([4], 7), mask_roi_pool=roi_pool([4], 14),
    ).eval()  # fmt: skip
    fixed = [Fixed(0.0, 1.0), Fixed(2.0, 2.0), Fixed(4.0, 3.0)]  # offsets in units of 1/10, 1/20, 1/30 of the width
    heads._stages = lambda: fixed
    (result,), _ = heads({"0": torch.zeros(1, 4, 50, 50)}, [torch.tensor([[10.0, 20.0, 50.0, 60.0]])], [(200, 200)])
    assert result["boxes"][0].tolist() == pytest.approx([22.0, 20.0, 62.0, 60.0], abs=1e-4)  # 40 * 0.1 three times
    expected = torch.tensor([0.0, 2.0, 4.0]).sigmoid().mean().item()
    assert result["scores"].item() == pytest.approx(expected, abs=1e-5)
    assert result["masks"].mean().item() == pytest.approx(0.5)


def coco_file(path, target, height, width):
    """The objects of a target as the ground truth of one image."""
    pytest.importorskip("faster_coco_eval")
    annotations = [
        {
            "id": i, "image_id": 1, "category_id": 1 + label, "area": (right - left) * (bottom - top), "iscrowd": 0,
            "bbox": [left, top, right - left, bottom - top],
            "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
        }
        for i, ((left, top, right, bottom), label) in enumerate(
            zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True), 1
        )
    ]  # fmt: skip
    content = {
        "images": [{"id": 1, "file_name": "one.png", "height": height, "width": width}], "annotations": annotations,
        "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}],
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("system", SYSTEMS)
def test_one_image_is_learned(make_detector, sample, system, tmp_path):
    """To an average precision of 1: the strictest overlap that it counts is 0.95."""
    torch.manual_seed(0)
    image, target = sample
    height, width = image.shape[1:]
    detector = make_detector(system, eval_size=height)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3)
    steps = 400 if detector.has_masks else 280
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    detector.train()
    for _ in range(steps):
        # Cropped by a few pixels: anchors between object and background are trained in neither sense, and on an image
        # that never moves those between the thresholds are always the same.
        top, left = torch.randint(9, (2,)).tolist()
        moved = {
            "boxes": target["boxes"] - torch.tensor([left, top, left, top]), "labels": target["labels"],
            "masks": target["masks"][:, top:, left:],
        }  # fmt: skip
        loss = sum(detector([image[:, top:, left:]], [moved]).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    detector.eval()
    with torch.inference_mode():
        found = detector([image])[0]
    truth = coco_file(tmp_path / "truth.json", target, height, width)
    metrics = CocoMetrics(truth, [1, 2], [1], detector.has_masks)
    metrics.update(1, found)
    measured = metrics.compute()
    assert measured["box_AP"] == 100
    assert measured.get("mask_AP", 100) == 100


def test_wrong_inputs_are_refused(make_detector, sample):
    detector = make_detector("mask_rcnn")
    with pytest.raises(ValueError, match=r"images must be \(3, H, W\), got \(1, 64, 96\)"):
        detector([torch.rand(1, 64, 96)])
    with pytest.raises(ValueError, match="training needs a target for each of 1 images"):
        detector([sample[0]])
    with pytest.raises(UserError, match="at least one class, got 0"):
        make_detector("mask_rcnn", classes=0)


def test_labels_that_count_from_1_are_refused(make_detector, sample):
    image, target = sample
    detector = make_detector("retinanet").train()
    with pytest.raises(UserError, match="labels must be from 0 to 1, got 1 to 2; torchvision's, which count from 1"):
        detector([image], [target | {"labels": target["labels"] + 1}])


@pytest.mark.parametrize("system", SYSTEMS)
def test_boxes_are_exact_in_mixed_precision(make_detector, sample, system):
    """Coordinates in bfloat16 would be multiples of 8 beyond 1024 pixels; features may be, boxes must not."""
    detector = make_detector(system, eval_size=128)
    image, target = sample
    seen = []
    if system != "retinanet":
        detector.network.roi_heads.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs[1]))
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector([image], [target])
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = confident(detector)([image])[0]
    boxes = [found["boxes"], *seen]
    assert all(b.dtype == torch.float32 for b in boxes)
    assert any((b != b.bfloat16().float()).any() for b in boxes)


@pytest.mark.gpu
@pytest.mark.parametrize("system", SYSTEMS)
def test_training_and_detecting_on_a_gpu(make_detector, sample, system):
    detector = make_detector(system).cuda()
    image, target = sample[0].cuda(), {name: value.cuda() for name, value in sample[1].items()}
    for amp in (False, True):
        with torch.autocast("cuda", torch.bfloat16, enabled=amp):
            losses = detector([image, image[:, :50, :71]], [target, {k: v.cuda() for k, v in nothing(50, 71).items()}])
        sum(losses.values()).backward()
        assert all(torch.isfinite(loss) for loss in losses.values())
    with torch.inference_mode():
        found = detector.eval()([image])[0]
    assert all(value.is_cuda for value in found.values())
