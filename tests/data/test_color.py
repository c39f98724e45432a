"""The option ``color`` does to images of detection and of segmentation what config.py says."""

from __future__ import annotations

import pytest
import torch
from torchvision import tv_tensors

from deformvit.config import DetectionDataConfig, SegmentationDataConfig
from deformvit.data import detection_transforms, segmentation_transforms

SIDE = 16


def detection(colour):
    data = DetectionDataConfig(min_size=(SIDE,), hflip=0.0, color=True)
    target = {"boxes": tv_tensors.BoundingBoxes(torch.tensor([[0, 0, 9, 9]]), format="XYXY", canvas_size=(SIDE, SIDE))}
    image = tv_tensors.Image(torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).repeat(1, SIDE, SIDE))
    return detection_transforms.train_transform(data)(image, target)[0][:, 0, 0]


def segmentation(colour):
    data = SegmentationDataConfig(
        scale=(SIDE, SIDE), ratio_range=(1.0, 1.0), crop_size=SIDE, cat_max_ratio=1.0, hflip=0.0, color=True
    )
    image = torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).repeat(1, SIDE, SIDE)
    return segmentation_transforms.train_transform(data)(image, torch.zeros(SIDE, SIDE, dtype=torch.uint8))[0][:, 0, 0]


def drawn(augment, colour):
    torch.manual_seed(0)
    return torch.stack([augment(colour) for _ in range(400)])


def test_detection_shuffles_channels_and_segmentation_keeps_their_order():
    red = (200, 40, 40)  # a hue turned by up to 36 degrees is still red
    moved = (drawn(detection, red).argmax(1) != 0).float().mean()
    assert moved == pytest.approx(1 / 3, abs=0.08)  # half of the images, of whose orders two thirds move the first
    assert (drawn(segmentation, red).argmax(1) == 0).all()


def test_brightness_is_multiplied_in_detection_and_added_in_segmentation():
    black = (0, 0, 0)
    assert (drawn(detection, black) == 0).all()
    brighter = drawn(segmentation, black).amax(1)
    assert 32 / 255 < brighter.max() <= 1.5 * 32 / 255  # contrast multiplies it by up to 1.5
    assert (brighter > 0).float().mean() == pytest.approx(0.25, abs=0.08)  # half of the images, half of those darker


def test_hue_turns_twice_as_far_in_segmentation():
    def hues(colours):
        """Degrees from red to yellow or magenta, of images whose strongest channel is red."""
        colours = colours[colours.argmax(1) == 0]
        largest, smallest = colours.amax(1), colours.amin(1)
        return 60 * (colours[:, 1] - colours[:, 2]).abs() / (largest - smallest)

    red = (120, 60, 60)  # brightness and contrast keep it between 0 and 1
    assert hues(drawn(segmentation, red)).max() == pytest.approx(36, abs=3)
    assert hues(drawn(detection, red)).max() == pytest.approx(18, abs=3)
