"""Augmentation keeps images, boxes and masks aligned and returns plain tensors."""

from __future__ import annotations

import pickle

import pytest
import torch
from torchvision import tv_tensors

from deformvit.config import DetectionDataConfig
from deformvit.data.detection_transforms import CropBetween, ShortestSize, eval_transform, train_transform


def sample(boxes, height, width, masks=True, image_id=7):
    """An image whose objects are brighter than the rest, each by its place, with masks that fill the boxes."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    shapes = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for place, (x1, y1, x2, y2) in enumerate(boxes):
        shapes[place, y1:y2, x1:x2] = 1
        image[:, y1:y2, x1:x2] = 60 + 40 * place
    target = {
        "boxes": tv_tensors.BoundingBoxes(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), format="XYXY", canvas_size=(height, width)
        ),
        "labels": torch.arange(len(boxes)),
        "image_id": torch.tensor(image_id),
    }
    if masks:
        target["masks"] = tv_tensors.Mask(shapes)
    return tv_tensors.Image(image), target


def plain_config(**given):
    return DetectionDataConfig(**{"min_size": (40,), "max_size": 1000, "hflip": 0.0} | given)


def assert_plain(image, target, masks=True):
    assert type(image) is torch.Tensor
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    assert 0 <= image.min() <= image.max() <= 1
    assert set(target) == {"boxes", "labels", "image_id"} | ({"masks"} if masks else set())
    assert all(type(value) is torch.Tensor for value in target.values())
    count = len(target["labels"])
    assert (target["boxes"].dtype, tuple(target["boxes"].shape)) == (torch.float32, (count, 4))
    assert target["labels"].dtype == target["image_id"].dtype == torch.int64
    if masks:
        assert (target["masks"].dtype, tuple(target["masks"].shape)) == (torch.uint8, (count, *image.shape[1:]))


def drawn(mask):
    """Box around a mask."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return [columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1]


@pytest.mark.parametrize(
    ("flips", "expected"),
    [
        ({}, [10, 4, 30, 12]),
        ({"hflip": 1.0}, [30, 4, 50, 12]),
        ({"vflip": 1.0}, [10, 28, 30, 36]),
        ({"hflip": 1.0, "vflip": 1.0}, [30, 28, 50, 36]),
    ],
)
def test_flips(flips, expected):
    image, target = train_transform(plain_config(**flips))(*sample([[10, 4, 30, 12]], 40, 60))
    assert_plain(image, target)
    assert target["boxes"].tolist() == [expected]
    assert drawn(target["masks"][0]) == drawn(image[0] > 0) == expected
    assert image.max() == pytest.approx(60 / 255)
    assert target["image_id"] == 7


@pytest.mark.parametrize(
    ("size", "max_size", "expected", "scale"),
    [
        ((40, 60), 1000, (80, 120), 2),  # the shorter side to 80
        ((60, 40), 1000, (120, 80), 2),
        ((40, 60), 90, (60, 90), 1.5),  # the longer side to 90
        ((60, 40), 90, (90, 60), 1.5),
        ((160, 400), 1000, (80, 200), 0.5),
    ],
)
def test_resize(size, max_size, expected, scale):
    box = [8, 4, 32, 28]
    image, target = train_transform(plain_config(min_size=(80,), max_size=max_size))(*sample([box], *size))
    assert tuple(image.shape[1:]) == expected
    assert target["boxes"].tolist() == [[side * scale for side in box]]
    assert drawn(target["masks"][0]) == [side * scale for side in box]
    assert_plain(image, target)


def test_resize_reaches_its_size():
    """Neither 799 for 800 nor nothing for a line of pixels, whatever the rounding."""
    for height, width in ((427, 640), (334, 500), (500, 334), (1, 900), (3, 3000), (610, 640)):
        image, _ = ShortestSize((800,), 1333)(*sample([], height, width))
        sides = sorted(image.shape[1:])
        if 800 * max(height, width) / min(height, width) <= 1333:
            assert sides[0] == 800
        else:
            assert sides[1] == 1333
        assert sides[0] >= 1
        assert sides[1] <= 1333


def test_masks_are_read_at_the_centres_of_pixels():
    """Of every three columns the middle one counts; the corners' would be the first."""
    image, target = sample([[0, 0, 9, 9]], 9, 9)
    target["masks"] = tv_tensors.Mask((torch.arange(9) % 3 == 1).to(torch.uint8).expand(1, 9, 9).contiguous())
    assert ShortestSize((3,))(image, target)[1]["masks"].sum() == 9


def test_every_size_is_drawn():
    transform = train_transform(plain_config(min_size=(20, 30, 50)))
    seen = {transform(*sample([], 40, 60))[0].shape[1] for _ in range(60)}
    assert seen == {20, 30, 50}


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("crop", ["none", "branch", "square"])
def test_images_without_objects(crop, masks):
    config = plain_config(crop=crop, crop_size=24, hflip=0.5, vflip=0.5, color=True)
    transform = train_transform(config)
    for _ in range(8):
        image, target = transform(*sample([], 47, 31, masks))
        assert_plain(image, target, masks)
        assert len(target["labels"]) == 0


@pytest.mark.parametrize("crop", ["branch", "square"])
def test_crops_keep_boxes_masks_and_labels_together(crop):
    """After any crop, every object's box is around its mask, which is where the image has its brightness."""
    boxes = [[0, 0, 20, 12], [24, 16, 48, 40], [56, 4, 76, 36], [4, 44, 72, 56]]
    transform = train_transform(plain_config(min_size=(40, 70), crop=crop, crop_size=35, hflip=0.5, vflip=0.5))
    lost = shapes = 0
    sizes = set()
    for _ in range(60):
        image, target = transform(*sample(boxes, 60, 80))
        assert_plain(image, target)
        sizes.add(tuple(image.shape[1:]))
        lost += len(target["labels"]) < 4
        for box, mask, label in zip(target["boxes"], target["masks"], target["labels"], strict=True):
            x1, y1, x2, y2 = box.tolist()
            assert 0 <= x1 <= x2 - 1
            assert 0 <= y1 <= y2 - 1
            assert x2 <= image.shape[2]
            assert y2 <= image.shape[1]
            assert drawn(mask) == pytest.approx(box.tolist(), abs=2)  # rounded twice, enlarged in between
            inner = mask[int(y1) + 2 : int(y2) - 2, int(x1) + 2 : int(x2) - 2]
            values = image[0, int(y1) + 2 : int(y2) - 2, int(x1) + 2 : int(x2) - 2]
            if values.numel() and inner.all():
                shapes += 1
                assert values.median().item() == pytest.approx((60 + 40 * label.item()) / 255, abs=0.01)
    assert lost > 5
    assert shapes > 50
    assert len(sizes) > 10 if crop == "branch" else sizes == {(35, 35)}


def test_square_crop_does_not_pad():
    transform = train_transform(plain_config(min_size=(20,), crop="square", crop_size=24))
    for height, width, expected in ((40, 100, (20, 24)), (100, 40, (24, 20)), (40, 40, (20, 20))):
        assert tuple(transform(*sample([], height, width))[0].shape[1:]) == expected


def test_crop_clips_boxes_and_drops_what_is_gone(monkeypatch):
    """A crop of 20 rows from 10 and 30 columns from 5, by hand."""
    boxes = [[0, 0, 15, 40], [6, 12, 16, 20], [50, 5, 58, 39], [30, 10, 60, 12], [5, 29, 40, 40]]
    draws = iter([20, 30, 10, 5])
    monkeypatch.setattr("deformvit.data.detection_transforms._draw", lambda low, high: next(draws))
    image, target = sample(boxes, 40, 60)
    target["masks"][3] = 0
    target["masks"][3, 10, 59] = 1  # the only pixel of the fourth is beyond the crop, though its box is not
    transform = train_transform(plain_config(crop="square", crop_size=20))
    image, target = transform(image, target)
    assert tuple(image.shape) == (3, 20, 30)
    assert target["labels"].tolist() == [0, 1, 4]
    assert target["boxes"].tolist() == [[0, 0, 10, 20], [1, 2, 11, 10], [0, 19, 30, 20]]
    assert [drawn(mask) for mask in target["masks"]] == target["boxes"].tolist()
    assert_plain(image, target)


def test_crops_without_masks_go_by_boxes(monkeypatch):
    draws = iter([20, 30, 10, 5])
    monkeypatch.setattr("deformvit.data.detection_transforms._draw", lambda low, high: next(draws))
    boxes = [[50, 5, 58, 39], [30, 10, 60, 12]]
    image, target = train_transform(plain_config(crop="square", crop_size=20))(*sample(boxes, 40, 60, masks=False))
    assert_plain(image, target, masks=False)
    assert (target["labels"].tolist(), target["boxes"].tolist()) == ([1], [[25, 0, 30, 2]])


def test_sides_of_crops_are_drawn_from_the_range():
    crop = CropBetween(10, 14)
    shapes = {tuple(crop(sample([], 12, 40)[0]).shape[1:]) for _ in range(300)}
    assert shapes == {(height, width) for height in (10, 11, 12) for width in (10, 11, 12, 13, 14)}
    corners = {
        crop(
            tv_tensors.Image(torch.arange(3).expand(1, 1, 3)),
        )[0, 0, 0].item()
        for _ in range(5)
    }
    assert corners == {0}  # an image smaller than the range stays whole
    places = tv_tensors.Image(torch.arange(24).reshape(1, 4, 6))
    starts = {CropBetween(2, 2)(places)[0, 0, 0].item() for _ in range(300)}
    assert starts == {6 * row + column for row in range(3) for column in range(5)}


def test_branch_draws_detrs_numbers_scaled(monkeypatch):
    drawn = []

    def draw(low, high):
        drawn.append((low, high))
        return low

    monkeypatch.setattr("deformvit.data.detection_transforms._draw", draw)
    transform = train_transform(plain_config(min_size=(60, 80), crop="branch"))
    for _ in range(60):
        drawn.clear()
        transform(*sample([], 80, 120))
        assert drawn in (
            [],
            *([(38, height), (38, 60), (0, height - 38), (0, height * 3 // 2 - 38)] for height in (40, 50, 60)),
        )


def test_branch_is_detrs_scaled():
    """Half of the images are resized only; of the others, 384 to 600 of 400 to 600 pixels are seen."""
    transform = train_transform(plain_config(min_size=(80,), crop="branch"))
    image = torch.linspace(0, 255, 100).to(torch.uint8).expand(3, 100, 100).contiguous()
    target = sample([], 100, 100)[1]
    whole, seen = 0, []
    for _ in range(200):
        found = transform(tv_tensors.Image(image), target)[0]
        assert min(found.shape[1:]) == 80
        part = (found.max() - found.min()).item()
        whole += found.shape[1] == found.shape[2] and part > 0.97
        seen.append((part, found.shape[2] / found.shape[1]))
    assert 80 <= whole <= 130  # the crop may be the whole image too
    parts = [part for part, _ in seen if part < 0.97]
    assert 0.6 < min(parts) < 0.75  # 38 of 60
    ratios = [ratio for _, ratio in seen]
    assert 1.2 < max(ratios) <= 60 / 38 + 0.05
    assert 38 / 60 - 0.05 <= min(ratios) < 0.8


def test_colours_change_only_when_asked():
    given = sample([[10, 4, 30, 12]], 40, 60)
    same = [train_transform(plain_config())(*given)[0] for _ in range(5)]
    assert all(torch.equal(image, same[0]) for image in same)
    other = [train_transform(plain_config(color=True))(*given) for _ in range(5)]
    assert any(not torch.equal(image, same[0]) for image, _ in other)
    assert all(target["boxes"].tolist() == [[10, 4, 30, 12]] for _, target in other)
    assert all(0 <= image.min() <= image.max() <= 1 for image, _ in other)


def test_boxes_of_less_than_a_pixel_go():
    image, target = sample([[10, 4, 30, 12], [0, 0, 40, 4]], 80, 120)
    image, target = train_transform(plain_config(min_size=(15,)))(image, target)
    assert target["labels"].tolist() == [0]


def test_evaluation_keeps_everything():
    image, target = sample([[10, 4, 30, 12], [3, 3, 3, 3]], 40, 60)
    found, kept = eval_transform()(image, target)
    assert_plain(found, kept)
    torch.testing.assert_close(found, image.as_subclass(torch.Tensor) / 255)
    assert kept["boxes"].tolist() == [[10, 4, 30, 12], [3, 3, 3, 3]]
    assert kept["image_id"] == 7
    assert_plain(*eval_transform()(*sample([], 40, 60)))


def test_what_goes_in_stays_as_it_was():
    image, target = sample([[10, 4, 30, 12]], 40, 60)
    before = image.clone(), {name: value.clone() for name, value in target.items()}
    train_transform(plain_config(hflip=1.0, crop="square", crop_size=30, color=True))(image, target)
    assert torch.equal(image, before[0])
    assert all(torch.equal(value, before[1][name]) for name, value in target.items())


def test_seeds_repeat():
    config = plain_config(min_size=(30, 40, 50), crop="branch", color=True, hflip=0.5, vflip=0.5)
    transform = pickle.loads(pickle.dumps(train_transform(config)))  # as loader processes get it
    given = sample([[10, 4, 30, 12]], 40, 60)
    for seed in range(3):
        torch.manual_seed(seed)
        image, target = transform(*given)
        torch.manual_seed(seed)
        again, same = transform(*given)
        assert torch.equal(image, again)
        assert all(torch.equal(target[name], same[name]) for name in target)
