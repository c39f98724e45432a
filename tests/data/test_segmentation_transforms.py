"""Augmentation keeps images and labels aligned; evaluation leaves them as they are."""

from __future__ import annotations

import colorsys
import pickle
from dataclasses import replace

import pytest
import torch
from torchvision import tv_tensors

from deformvit.config import SegmentationDataConfig
from deformvit.data.segmentation_transforms import distort, eval_transform, fit, saturate, train_transform
from deformvit.errors import UserError

PLAIN = SegmentationDataConfig(
    scale=(24, 96), ratio_range=(1.0, 1.0), crop_size=16, cat_max_ratio=1.0, hflip=0.0, color=False
)
"""Of the random parts only the crop, of images that are 24 high."""


@pytest.fixture(autouse=True)
def one_thread():
    """As in loader processes; two threads wait for each other when other programs keep the cores busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def sample(height, width, labels=None):
    """An image whose red is its column, whose green is its row and whose blue is its label; in items of the dataset."""
    rows, columns = torch.arange(height)[:, None].expand(height, width), torch.arange(width).expand(height, width)
    labels = (rows // 8 + columns // 8) % 5 if labels is None else labels
    image = torch.stack([columns, rows, labels * 20]).to(torch.uint8)
    return tv_tensors.Image(image), tv_tensors.Mask(labels.to(torch.uint8))


def corner(image):
    """Row and column of the image's first pixel in a crop of :func:`sample`."""
    return int((image[1, 0, 0] * 255).round()), int((image[0, 0, 0] * 255).round())


@pytest.mark.parametrize(
    ("size", "scale", "factor", "expected"),
    [
        ((512, 683), (512, 2048), 1.0, (512, 683)),
        ((360, 480), (512, 2048), 1.0, (512, 683)),  # 682.67
        ((480, 360), (512, 2048), 1.0, (683, 512)),
        ((360, 480), (512, 2048), 0.5, (256, 341)),  # 341.33
        ((360, 480), (2048, 512), 2.0, (1024, 1365)),  # mmsegmentation's order; 1365.33
        ((100, 1000), (512, 2048), 1.0, (205, 2048)),  # the longer side decides
        ((1000, 100), (512, 2048), 0.5, (1024, 102)),
        ((1, 5000), (512, 2048), 1.0, (1, 2048)),
        ((30, 40), (33, 99), 0.75, (24, 32)),  # 24.75 pixels are 24
    ],
)
def test_fit(size, scale, factor, expected):
    assert fit(size, scale, factor) == expected


def test_output():
    image, labels = train_transform(replace(PLAIN, color=True))(*sample(24, 40))
    assert (type(image), image.dtype, image.shape) == (torch.Tensor, torch.float32, (3, 16, 16))
    assert (type(labels), labels.dtype, labels.shape) == (torch.Tensor, torch.int64, (16, 16))
    assert 0 <= image.min() < image.max() <= 1


def test_wide_labels_and_ignored_ones_survive():
    wide = torch.arange(24 * 40).view(24, 40) * 60
    image, _ = sample(24, 40)
    _, labels = train_transform(replace(PLAIN, crop_size=40))(image, tv_tensors.Mask(wide))
    assert torch.equal(labels[:24], wide)


def test_crops_reach_every_corner_and_nothing_else():
    transform = train_transform(replace(PLAIN, crop_size=22))
    original = sample(24, 26)
    corners = set()
    for _ in range(400):
        image, labels = transform(*original)
        top, left = corner(image)
        corners.add((top, left))
        assert torch.equal((image * 255).round().byte(), original[0][:, top : top + 22, left : left + 22])
        assert torch.equal(labels, original[1][top : top + 22, left : left + 22].long())
    assert corners == {(top, left) for top in range(3) for left in range(5)}


def test_flips_as_often_as_asked():
    original = sample(24, 40)
    for probability, expected in ((0.0, range(1)), (0.5, range(60, 140)), (1.0, range(200, 201))):
        transform = train_transform(replace(PLAIN, hflip=probability))
        flipped = 0
        for _ in range(200):
            image, labels = transform(*original)
            is_flipped = bool(image[0, 0, 0] > image[0, 0, 1])
            flipped += is_flipped
            top, left = corner(image.flip(-1) if is_flipped else image)
            part = original[1][top : top + 16, left : left + 16].long()
            assert torch.equal(labels, part.flip(-1) if is_flipped else part)
        assert flipped in expected


def test_resized_by_factors_from_the_range():
    transform = train_transform(replace(PLAIN, ratio_range=(0.5, 2.0), crop_size=128))
    heights = []
    for _ in range(200):
        _, labels = transform(*sample(48, 60))
        known = labels != 255
        height, width = int(known.any(1).sum()), int(known.any(0).sum())
        assert abs(width - height * 60 / 48) < 1
        heights.append(height)
    assert min(heights) in range(12, 14)
    assert max(heights) in range(46, 49)
    assert 28 < sum(heights) / 200 < 32  # of 24 x 1.25, spread evenly
    transform = train_transform(replace(PLAIN, ratio_range=(1.0, 1.0), scale=(24, 30), crop_size=128))
    assert (transform(*sample(20, 100))[1] != 255).sum() == 6 * 30  # the longer side holds it back


def test_labels_stay_with_the_image_through_everything():
    """Blue says the label, away from seams between labels, at any size, crop and flip."""
    transform = train_transform(replace(PLAIN, scale=(48, 200), ratio_range=(0.5, 2.0), crop_size=40, hflip=0.5))
    seen = 0
    for _ in range(40):
        image, labels = transform(*sample(48, 80))
        same = torch.nn.functional.max_pool2d(labels[None].float(), 5, 1, 2)
        same = (same == -torch.nn.functional.max_pool2d(-labels[None].float(), 5, 1, 2))[0] & (labels != 255)
        same[:2] = same[-2:] = same[:, :2] = same[:, -2:] = False  # a seam may lie just outside the crop
        assert ((image[2] * 255 / 20).round()[same] == labels[same]).all()
        seen += int(same.sum())
    assert seen > 5000


@pytest.mark.parametrize("factor", [0.5, 0.7, 1.3])
def test_labels_are_not_shifted_by_resizing(factor):
    """Every label is a column's number, and so is every colour: a nearest neighbour counted from corners of pixels
    would be half a pixel to the left of the image."""
    columns = torch.arange(100).expand(60, 100)
    transform = train_transform(replace(PLAIN, scale=(60, 200), ratio_range=(factor, factor), crop_size=200))
    image, labels = transform(*sample(60, 100, columns))
    known = labels != 255
    difference = labels[known] - image[0][known] * 255
    assert difference.abs().max() <= 1.1
    # At 0.5 the centre lies between two columns, and one of them must be it.
    assert difference.mean().abs() < (0.55 if factor == 0.5 else 0.1)
    assert known.sum() == round(60 * factor) * round(100 * factor)


def test_shrunk_images_are_smoothed():
    """To a quarter: one white column in four is gray then, where two neighbours alone would give black."""
    white = (torch.arange(64) % 4 == 0).expand(64, 64)
    image, labels = train_transform(replace(PLAIN, scale=(16, 96)))((white * 255).byte().expand(3, 64, 64), white.int())
    assert ((image - 0.25).abs() < 0.1).all()
    assert set(labels.unique().tolist()) <= {0, 1}


def test_what_is_missing_is_filled():
    transform = train_transform(replace(PLAIN, crop_size=30, ignore_label=99, color=True, mean=(0.1, 0.2, 0.3)))
    image, labels = transform(*sample(24, 27))
    assert (labels[24:] == 99).all()
    assert (labels[:, 27:] == 99).all()
    assert torch.equal(labels[:24, :27], sample(24, 27)[1].long())
    normalised = (image - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / 0.2
    assert normalised[:, 24:].count_nonzero() == normalised[:, :, 27:].count_nonzero() == 0  # exactly, and undistorted
    assert normalised[:, :24, :27].count_nonzero() > 1000


def half_and_half(columns, width=60):
    """Label 0 but for the last ``columns``."""
    labels = torch.zeros(24, width, dtype=torch.long)
    labels[:, width - columns :] = 1
    return sample(24, width, labels)


def test_crops_of_one_class_are_drawn_again():
    """16 of 45 positions see label 1; a single draw would miss it in two thirds of the cases, eleven in 1 %."""
    original = half_and_half(16)
    for ratio, most, least in ((1.0, 0.75, 0.55), (0.999, 0.05, 0.0)):
        transform = train_transform(replace(PLAIN, cat_max_ratio=ratio))
        missed = sum(not (transform(*original)[1] == 1).any() for _ in range(200)) / 200
        assert least <= missed <= most
    # Where there is nothing else the last draw is taken; where there is no choice the first is.
    assert draws_of(transform, half_and_half(0)) == 11
    assert draws_of(train_transform(replace(PLAIN, crop_size=60, cat_max_ratio=0.5)), half_and_half(0)) == 1
    assert (transform(*half_and_half(0))[1] == 0).all()


def test_largest_part_of_a_class():
    transform = train_transform(replace(PLAIN, cat_max_ratio=0.75))
    parts = [float((transform(*half_and_half(30))[1] == 1).float().mean()) for _ in range(100)]
    balanced = [0.25 < part < 0.75 for part in parts]  # 7 of the 45 positions; 16 % of crops if drawn once
    assert 0.7 < sum(balanced) / 100 < 1
    # 3 / 4 is not less than 0.75: crops with 4 of 16 columns are drawn again, as in the published recipes.
    labels = torch.tensor([0, 1, 1, 1]).repeat(10).expand(24, 40)
    draws = draws_of(transform, sample(24, 40, labels))
    assert draws == 11


def draws_of(transform, original):
    """How many crops were looked at, by what they took from the generator."""
    torch.manual_seed(5)
    transform(*original)
    state = torch.get_rng_state()
    for draws in range(12):
        torch.manual_seed(5)
        torch.rand(())  # the factor
        for _ in range(2 * draws):
            torch.randint(9, ())
        torch.rand(())  # the flip
        if torch.equal(torch.get_rng_state(), state):
            return draws
    raise AssertionError("not of this order")


def test_ignored_pixels_do_not_balance():
    """Half of the pixels being ignored doesn't make the other half less of one class."""
    labels = torch.tensor([255, 255, 255, 1]).repeat(10).expand(24, 40)
    transform = train_transform(replace(PLAIN, cat_max_ratio=0.9))
    assert draws_of(transform, sample(24, 40, labels)) == 11
    # One in eight ignored, six of class 1, one of class 2: 6 / 7 of those that count, but 6 / 8 of all.
    labels = torch.tensor([255, 1, 1, 1, 1, 1, 1, 2]).repeat(5).expand(24, 40)
    assert draws_of(transform, sample(24, 40, labels)) == 1
    assert draws_of(train_transform(replace(PLAIN, cat_max_ratio=0.8)), sample(24, 40, labels)) == 11
    labels = torch.full((24, 40), 255)  # nothing counts
    assert draws_of(transform, sample(24, 40, labels)) == 11


def test_seeds_repeat_and_differ():
    transform = train_transform(SegmentationDataConfig(scale=(48, 96), crop_size=32))
    original = sample(48, 60)

    def draw(seed, transform=transform):
        torch.manual_seed(seed)
        return transform(*original)

    image, labels = draw(3)
    for again in (draw(3), draw(3, pickle.loads(pickle.dumps(transform)))):
        assert torch.equal(again[0], image)
        assert torch.equal(again[1], labels)
    others = [draw(seed) for seed in range(4, 10)]
    assert all(not torch.equal(other[0], image) for other in others)
    assert not all(torch.equal(other[1], labels) for other in others)


@pytest.mark.parametrize("ratios", [(0.0, 1.0), (2.0, 0.5), (-1.0, 1.0)])
def test_wrong_factors_are_refused(ratios):
    with pytest.raises(UserError, match=r"data\.ratio_range must be two positive factors"):
        train_transform(replace(PLAIN, ratio_range=ratios))


def test_evaluation_keeps_size_and_colours():
    original = sample(24, 40)
    image, labels = pickle.loads(pickle.dumps(eval_transform(PLAIN)))(*original)
    assert (type(image), image.dtype) == (type(labels), torch.float32) == (torch.Tensor, torch.float32)
    assert labels.dtype == torch.int64
    assert torch.equal(image * 255, original[0].float())
    assert torch.equal(labels, original[1].long())


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5, 10.0])
def test_saturation_is_of_hsv(factor):
    colours = [(0.4, 0.3, 0.2), (0.1, 0.9, 0.5), (0.5, 0.5, 0.5), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.7, 0.0, 0.1)]
    image = saturate(torch.tensor(colours).T.reshape(3, 2, 3), factor)
    for colour, found in zip(colours, image.reshape(3, 6).T.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*colour)
        assert found == pytest.approx(colorsys.hsv_to_rgb(hue, min(saturation * factor, 1), value), abs=1e-5)


def test_distortion_of_gray():
    """Gray has neither hue nor saturation: brightness and contrast remain, each for half of the images."""
    gray = torch.full((3, 2, 3), 0.5)
    values = []
    for _ in range(600):
        image = distort(gray)
        assert image.max() - image.min() < 1e-5
        values.append(float(image[0, 0, 0]))
    change = torch.tensor(values) - 0.5
    assert 0.17 < (change.abs() < 1e-5).float().mean() < 0.33
    assert (0.5 - 32 / 255) * 0.5 - 1e-5 <= min(values) < 0.23
    assert 0.85 < max(values) <= (0.5 + 32 / 255) * 1.5 + 1e-5
    small = ((change.abs() > 1e-5) & (change.abs() < 32 / 255)).float().mean()
    assert small > 0.3  # brightness alone, a quarter of all, and weak contrast


def test_distortion_of_colours():
    """Hues turn by up to 36 degrees and stay as they are for half of the images: channels are not exchanged."""
    colour = (0.4, 0.3, 0.2)
    hue, saturation, _ = colorsys.rgb_to_hsv(*colour)
    turns, saturations = [], []
    for _ in range(400):
        found = colorsys.rgb_to_hsv(*distort(torch.tensor(colour).view(3, 1, 1)).flatten().tolist())
        turns.append((found[0] - hue + 0.5) % 1 - 0.5)
        saturations.append(found[1])
    turned = torch.tensor(turns)
    assert 0.09 < turned.max() < 0.1001
    assert -0.1001 < turned.min() < -0.09
    assert 0.42 < (turned.abs() < 1e-3).float().mean() < 0.58
    assert min(saturations) < 0.55 * saturation
    assert max(saturations) > 1.5 * saturation


def test_distortion_stays_in_range():
    image = torch.rand(3, 8, 8)
    image[:, :2], image[:, 6:] = 0, 1
    for _ in range(100):
        changed = distort(image)
        assert torch.isfinite(changed).all()
        assert 0 <= changed.min() <= changed.max() <= 1 + 1e-6
