"""Sizes of a detection or segmentation run that its configuration leaves open."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from deformvit import UserError, recipes
from deformvit.config import DetectionConfig, DetectionDataConfig, SegmentationConfig, SegmentationDataConfig
from deformvit.models.descriptions import DetectorDescription
from deformvit.systems import build_detector, build_segmenter
from deformvit.tasks.detection import Detection
from deformvit.tasks.image_sizes import fill_in_detection, fill_in_segmentation
from deformvit.tasks.segmentation import Segmentation


def detection(size, sides=(), described=None, **given):
    config = DetectionConfig(data=DetectionDataConfig(**given))
    fill_in_detection(config, [size] * 3, sides, described)
    return config.data.eval_size, config.data.min_size, config.data.max_size


@pytest.mark.parametrize(
    ("size", "sides", "expected"),
    [
        ((480, 640), [100.0], 480),  # large objects: the images' own size
        ((480, 640), [20.0], 768),  # enlarged until they have 32 pixels
        ((480, 640), [2.0], 800),  # at most to 800
        ((256, 256), [1.0], 512),  # at most twice
        ((70, 101), [40.0], 128),  # the coarsest map needs cells
        ((3000, 4000), [500.0], 800),
        ((480, 640), [], 480),
    ],
)
def test_detection_follows_the_images(size, sides, expected):
    eval_size, min_size, max_size = detection(size, sides)
    assert eval_size == expected
    assert min_size[0] < expected
    assert expected in min_size
    assert max(min_size) <= max(min(max_size, 800), expected)
    assert max_size <= 1333


def test_what_is_given_stays():
    assert detection((480, 640), [2.0], eval_size=96, max_size=200) == (96, (77, 96, 115), 200)
    assert detection((480, 640), [90.0], max_size=320) == (240, (192, 240, 288), 320)
    assert detection((480, 640), min_size=(100,))[1] == (100,)


def test_a_detector_that_the_run_starts_from_says_its_sizes():
    head = recipes.ALL["retinanet-dat-nano-bccd"]().head
    described = DetectorDescription(name="dat_nano", head=head, stages=(2, 3, 4), eval_size=160, max_size=320)
    assert detection((480, 640), [2.0], described)[::2] == (160, 320)


def test_published_recipes_keep_published_sizes():
    for name in ("mask-rcnn-dat-tiny-1x", "retinanet-dat-small-3x"):
        config = recipes.ALL[name]()
        before = dataclasses.replace(config.data)
        fill_in_detection(config, [(70, 101)], [3.0], None)
        assert config.data == before
        assert (before.eval_size, before.max_size, max(before.min_size)) == (800, 1333, 800)
    config = recipes.ALL["upernet-dat-tiny"]()
    fill_in_segmentation(config, [(70, 101)], None)
    assert (config.data.scale, config.data.crop_size) == ((512, 2048), 512)


@pytest.mark.parametrize(
    ("size", "given", "expected"),
    [
        ((360, 480), {}, ((360, 1440), 360)),
        ((70, 101), {}, ((128, 512), 128)),
        ((40, 60), {}, ((80, 320), 80)),
        ((1024, 2048), {}, ((512, 2048), 512)),
        ((360, 480), {"crop_size": 192}, ((192, 768), 192)),
        ((360, 480), {"scale": (180, 240)}, ((180, 240), 180)),
    ],
)
def test_segmentation_follows_the_images(size, given, expected):
    config = SegmentationConfig(data=SegmentationDataConfig(**given))
    fill_in_segmentation(config, [size] * 3, None)
    assert (config.data.scale, config.data.crop_size) == expected


def test_a_run_knows_its_sizes(shapes, labelled):
    config = recipes.ALL["detect"]()
    config.data.root, config.model.checkpoint = str(shapes), ""
    task = Detection(config)
    assert config.data.eval_size == 96  # the sides of 48 pixels, twice
    assert task.build_model().eval_size == 96
    image, _ = task.train_set[0]
    assert min(image.shape[1:]) in config.data.min_size
    config = recipes.ALL["segment"]()
    config.data.root, config.model.checkpoint = str(labelled), ""
    task = Segmentation(config)
    assert config.data.scale == (96, 384)
    assert task.build_model().scale == (96, 384)


def test_sizes_come_from_the_files_where_the_json_does_not_say_them(shapes, tmp_path):
    content = json.loads((shapes / "train.json").read_text())
    for entry in content["images"]:
        del entry["height"], entry["width"]
    (tmp_path / "train.json").write_text(json.dumps(content))
    (tmp_path / "train").symlink_to(shapes / "train")
    (tmp_path / "val.json").symlink_to(shapes / "val.json")
    (tmp_path / "val").symlink_to(shapes / "val")
    config = recipes.ALL["detect"]()
    config.data.root, config.model.checkpoint = str(tmp_path), ""
    Detection(config)
    assert config.data.eval_size == 96


def test_a_system_made_in_python_takes_images_as_they_are():
    config = DetectionConfig()
    config.model.name = "dat_nano"
    config.head.channels, config.head.box_channels = 32, 32
    detector = build_detector(config, 2)
    assert detector.input_size(70, 101) == (70, 101)
    assert detector.input_size(3000, 4000) == (1000, 1333)
    segmentation = SegmentationConfig()
    segmentation.model.name, segmentation.head.system = "dat_nano", "semantic_fpn"
    segmenter = build_segmenter(segmentation, 2).eval()
    assert segmenter.input_size(70, 101) == (70, 101)
    assert segmenter.input_size(4096, 4096) == (1024, 1024)
    assert segmenter.predict(torch.rand(3, 70, 101), scales=(1.0, 0.5)).shape == (70, 101)


def test_impossible_sizes_are_refused():
    for values, message in (
        ({"eval_size": -1}, "data.eval_size must not be negative, got -1"),
        ({"min_size": (0,)}, "data.min_size must be positive, got 0"),
    ):
        with pytest.raises(UserError, match=message):
            DetectionConfig(data=DetectionDataConfig(**values))
    with pytest.raises(UserError, match=r"data.scale must be two positive lengths, or 0 0 to choose, got \(0, 5\)"):
        SegmentationConfig(data=SegmentationDataConfig(scale=(0, 5)))
