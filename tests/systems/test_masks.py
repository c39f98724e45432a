"""Masks of boxes on images, against the targets that torchvision trains them on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes

from deformvit.systems.masks import TARGET_SHIFT, paste


def ellipses(count, side, height, width):
    """Masks (count, height, width) bool of about ``side`` pixels, and their boxes with an error of a third of one."""
    generator = torch.Generator().manual_seed(side)
    draw = torch.rand(4, count, generator=generator)
    cy, cx = side + draw[0] * (height - 2 * side), side + draw[1] * (width - 2 * side)
    ry, rx = side * (0.35 + 0.3 * draw[2:])
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    far = [((places - centre[:, None, None]) / radius[:, None, None]) ** 2 for places, centre, radius in
           ((y, cy, ry), (x, cx, rx))]  # fmt: skip
    boxes = torch.stack([cx - rx, cy - ry, cx + rx, cy + ry], 1)
    return far[0] + far[1] <= 1, boxes + torch.randn(boxes.shape, generator=generator) / 3


def overlap(one, other):
    return ((one & other).flatten(1).sum(1) / (one | other).flatten(1).sum(1)).mean().item()


@pytest.mark.parametrize(("side", "least"), [(10, 0.95), (16, 0.965), (40, 0.985)])
def test_targets_return_to_the_objects(side, least):
    truth, boxes = ellipses(100, side, 90, 130)
    targets = project_masks_on_boxes(truth.float(), boxes, torch.arange(len(truth)), 28)
    ours = overlap(paste(targets, boxes, (90, 130), (TARGET_SHIFT, TARGET_SHIFT)) >= 0.5, truth)
    theirs = overlap(paste_masks_in_image(targets[:, None], boxes, (90, 130))[:, 0] >= 0.5, truth)
    assert ours > least
    assert ours > theirs + 0.02


def test_pixels_belong_to_a_box_by_their_centres():
    pasted = paste(torch.ones(1, 28, 28), torch.tensor([[3.6, 9.4, 7.6, 29.4]]), (40, 20))[0] >= 0.5
    rows, cols = torch.where(pasted)
    assert (rows.min().item(), rows.max().item()) == (9, 28)
    assert (cols.min().item(), cols.max().item()) == (4, 7)
    assert pasted.sum() == 20 * 4


def test_cells_are_interpolated():
    mask = torch.zeros(1, 2, 2)
    mask[0, 0, 1] = 1.0  # upper right
    pasted = paste(mask, torch.tensor([[2.0, 1.0, 10.0, 5.0]]), (7, 12))[0]
    assert pasted[1, 9].item() == 1
    assert pasted[1, 2].item() == 0
    assert pasted[1, 5:7].tolist() == pytest.approx([0.375, 0.625])
    assert pasted[4, 9].item() == 0
    assert pasted[2:4, 9].tolist() == pytest.approx([0.75, 0.25])


def test_masks_beyond_the_image_and_without_extent():
    boxes = torch.tensor([[-10.0, -10.0, 10.0, 10.0], [5.0, 5.0, 5.0, 5.0]])
    pasted = paste(torch.ones(2, 28, 28), boxes, (20, 30))
    assert pasted.shape == (2, 20, 30)
    assert pasted.isfinite().all()
    assert pasted[0, :9, :9].min() == 1
    assert pasted[0, 12:].max() == 0
    assert paste(torch.ones(0, 28, 28), torch.zeros(0, 4), (20, 30)).shape == (0, 20, 30)


def test_shifts_go_their_own_ways():
    """A mask that shows its object two pixels too high and one too far left."""
    mask = torch.zeros(1, 20, 20)
    mask[0, 4:8, 5:9] = 1
    pasted = paste(mask, torch.tensor([[0.0, 0.0, 20.0, 20.0]]), (20, 20), (2.0, 1.0))[0] >= 0.5
    rows, cols = torch.where(pasted)
    assert (rows.min().item(), rows.max().item()) == (6, 9)
    assert (cols.min().item(), cols.max().item()) == (6, 9)


@pytest.mark.parametrize("factor", [0.5, 4])
def test_masks_of_resized_images_return_to_the_image(make_detector, factor):
    """The shift of the targets is in pixels of the image that the network saw."""
    height, width = 88, 132
    size = int(height * factor), int(width * factor)
    truth, boxes = ellipses(40, 24, height, width)
    seen = F.interpolate(truth[:, None].float(), size, mode="area" if factor < 1 else "nearest")[:, 0]
    targets = project_masks_on_boxes(seen, boxes * factor, torch.arange(len(truth)), 28)
    result = {
        "boxes": boxes * factor, "scores": torch.ones(len(truth)), "labels": torch.ones(len(truth), dtype=torch.long),
        "masks": targets[:, None],
    }  # fmt: skip
    found = make_detector("mask_rcnn")._to_image(result, size, (height, width))
    assert overlap(found["masks"], truth) > 0.965
