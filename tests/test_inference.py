"""Prediction in Python: what goes in, what comes out, and one preparation of a photo wherever a model file is read."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageDraw

import deformvit
from deformvit import ClassifierDescription, UserError, load, load_model, save_for_hub, save_model
from deformvit.config import ClassificationConfig, DetectionConfig, DetectorConfig, SegmentationConfig, SegmenterConfig
from deformvit.data.classification import SAMPLES
from deformvit.metrics.detection import from_torchvision
from deformvit.systems import build_detector, build_segmenter, describe_detector, describe_segmenter
from deformvit.tasks import classification
from deformvit.tasks.preprocessing import fill_in
from deformvit_command import main

TINY = {"dims": (16, 16, 32, 32), "num_heads": (1, 1, 2, 2), "groups": 1, "depths": (1, 2, 2, 1)}
CAT = SAMPLES / "cat.jpg"


@pytest.fixture(scope="module")
def nano():
    return load("dat_nano.cifar10", device="cpu")


@pytest.fixture(scope="module")
def photo():
    """A picture that is not square, so that every wrong crop, axis or channel shows."""
    generator = np.random.default_rng(0)
    small = Image.fromarray(generator.integers(0, 255, (7, 11, 3)).astype(np.uint8))
    picture = small.resize((173, 118), Image.Resampling.BICUBIC)
    ImageDraw.Draw(picture).ellipse([60, 10, 150, 100], fill=(230, 40, 10))
    return picture


@pytest.fixture(scope="module")
def other_preprocessing(tmp_path_factory):
    """A classifier whose size, crop, resizing, mean and std are all unlike those of its registered name."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("model")
    model = timm.create_model("dat_nano", num_classes=3, img_size=48)
    description = ClassifierDescription(
        name="dat_nano", args={"img_size": 48}, classes=["cat", "horse", "my horse"], img_size=48, crop_pct=0.7,
        resize="square", mean=(0.3, 0.4, 0.5), std=(0.2, 0.3, 0.1),
    )  # fmt: skip
    save_model(folder / "own.safetensors", model, description)
    return folder / "own.safetensors"


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    torch.manual_seed(2)
    config = DetectionConfig()
    config.model.name = "dat_nano"
    config.head = DetectorConfig(
        system="mask_rcnn", channels=16, box_channels=16, rois=16, proposals=16, detections=9, score_threshold=0.0,
        stages=(2, 3, 4),
    )  # fmt: skip
    config.data.eval_size, config.data.max_size = 60, 100
    model = build_detector(config, 2, TINY)
    path = tmp_path_factory.mktemp("detector") / "detector.safetensors"
    save_model(path, model, describe_detector(model, ["red", "green"], {}))
    return path


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    torch.manual_seed(3)
    config = SegmentationConfig()
    config.model.name, config.head = "dat_nano", SegmenterConfig(system="semantic_fpn", channels=16)
    config.data.scale = (40, 80)
    model = build_segmenter(config, 3, TINY)
    path = tmp_path_factory.mktemp("segmenter") / "segmenter.safetensors"
    save_model(path, model, describe_segmenter(model, ["sky", "road", "car"], {}, reduce_zero_label=True))
    return path


def test_five_lines(nano):
    result = nano(CAT)
    assert result.names[0] == "cat"
    assert result.scores[0] > 0.9
    assert len(result.labels) == 5
    assert result.scores.tolist() == sorted(result.scores.tolist(), reverse=True)
    assert [result.classes[i] for i in result.labels] == result.names
    assert (nano.task, nano.classes[3], nano.device.type) == ("classification", "cat", "cpu")
    told = json.loads(json.dumps(result.to_dict()))
    assert told["predictions"][0] == {"label": 3, "name": "cat", "score": pytest.approx(float(result.scores[0]))}


def test_a_photo_is_the_same_to_everyone(other_preprocessing, photo, tmp_path, capsys):
    """Predictor, bare network, timm's own preparation, hub folder, evaluation and the command give the same logits."""
    (tmp_path / "val").mkdir()
    for name in ("cat", "horse", "my horse"):
        (tmp_path / "val" / name).mkdir()
        photo.save(tmp_path / "val" / name / "photo.png")
    file = tmp_path / "val" / "cat" / "photo.png"
    predictor = load(other_preprocessing, device="cpu")
    with torch.inference_mode():
        expected = predictor.model(predictor.transform(photo)[None])

        network, description = deformvit.load_model(other_preprocessing)
        told = timm.data.resolve_model_data_config(network)
        assert told["input_size"] == (3, 48, 48)
        assert (told["mean"], told["std"]) == ((0.3, 0.4, 0.5), (0.2, 0.3, 0.1))
        prepare = timm.data.create_transform(**told)
        assert torch.equal(network(prepare(photo)[None]), expected)

        save_for_hub(network, tmp_path / "hub")
        hub = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
        prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(hub))
        assert torch.equal(hub(prepare(photo)[None]), expected)
        again = load(tmp_path / "hub", device="cpu")
        assert again.classes == predictor.classes
        assert torch.equal(again.model(again.transform(photo)[None]), expected)

        images = classification.open_evaluation(str(tmp_path), description, "own")
        assert torch.equal(network(images[0][0][None]), expected)

    config = ClassificationConfig()
    config.model.name, config.model.checkpoint = "dat_nano", str(other_preprocessing)
    fill_in(config)
    run = (config.data.img_size, config.data.crop_pct, config.data.resize, config.data.mean, config.data.std)
    assert run == (48, 0.7, "square", (0.3, 0.4, 0.5), (0.2, 0.3, 0.1))

    best = expected.softmax(-1)[0].max()
    assert predictor(file).scores[0] == pytest.approx(float(best), abs=1e-6)
    main(["predict", str(file), "--model", str(other_preprocessing), "--top", "1"])
    assert f"{100 * float(best):.1f} %" in capsys.readouterr().out


def test_a_run_says_what_the_checkpoint_does_not(nano):
    config = ClassificationConfig()
    config.model.name, config.model.checkpoint = "dat_nano", "dat_nano.cifar10"
    config.data.img_size, config.data.std = 64, (0.5, 0.5, 0.5)
    fill_in(config)
    assert (config.data.img_size, config.data.std) == (64, (0.5, 0.5, 0.5))
    assert config.data.mean == nano.description.mean
    fresh = ClassificationConfig()
    fresh.model.name = "dat_base_384"
    fill_in(fresh)
    assert (fresh.data.img_size, fresh.data.mean) == (384, (0.485, 0.456, 0.406))


def test_evaluation_measures_the_images_that_training_held_out(nano, tmp_path):
    generator = np.random.default_rng(2)
    for name in nano.classes:
        (tmp_path / name).mkdir()
        for i in range(12):
            Image.fromarray(generator.integers(0, 255, (9, 8, 3)).astype(np.uint8)).save(tmp_path / name / f"{i}.png")
    config = ClassificationConfig()
    config.model.name, config.model.checkpoint, config.data.root = "dat_nano", "dat_nano.cifar10", str(tmp_path)
    run = classification.Classification(config)
    assert (len(run.train_set), len(run.val_set)) == (110, 10)
    measured = classification.open_evaluation(str(tmp_path), nano.description, "nano")
    assert [path for path, _ in measured.samples] == [path for path, _ in run.val_set.samples]
    assert not {path for path, _ in measured.samples} & {path for path, _ in run.train_set.samples}
    other = classification.open_evaluation(str(tmp_path), nano.description, "nano", holdout=0.5, seed=3)
    assert len(other) == 60


def test_every_kind_of_image_is_the_same_image(nano, photo, tmp_path):
    photo.save(tmp_path / "photo.png")
    array = np.array(photo)
    buffer = io.BytesIO()
    photo.save(buffer, "PNG")
    sources = [
        tmp_path / "photo.png", str(tmp_path / "photo.png"), buffer.getvalue(), photo, photo.convert("RGBA"), array,
        torch.from_numpy(array).permute(2, 0, 1) / 255, torch.from_numpy(array).permute(2, 0, 1),
    ]  # fmt: skip
    results = nano(sources)
    assert [result.index for result in results] == list(range(len(sources)))
    for result in results:
        torch.testing.assert_close(result.scores, results[0].scores, rtol=0, atol=1e-6)
        assert result.labels.tolist() == results[0].labels.tolist()
        assert result.image.size == (173, 118)
    batch = torch.stack([torch.from_numpy(array).permute(2, 0, 1) / 255] * 3)
    assert [r.names for r in nano(batch)] == [results[0].names] * 3


def test_many_images_of_any_size_go_in_batches(nano, monkeypatch):
    generator = np.random.default_rng(1)
    images = [generator.integers(0, 255, (20 + 3 * i, 40 - i, 3)).astype(np.uint8) for i in range(7)]
    alone = [nano(image) for image in images]
    sizes = []
    monkeypatch.setattr(nano.model, "forward", lambda x, forward=nano.model.forward: sizes.append(len(x)) or forward(x))
    together = nano((image for image in images), batch_size=3, top=2)
    assert sizes == [3, 3, 1]
    for one, other in zip(alone, together, strict=True):
        assert one.labels[:2].tolist() == other.labels.tolist()
        torch.testing.assert_close(one.scores[:2], other.scores, rtol=0, atol=1e-5)


def test_photos_are_turned_upright(nano, photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "turned.png", exif=exif)
    upright = photo.transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(np.array(nano(tmp_path / "turned.png").image), np.array(upright))
    with Image.open(tmp_path / "turned.png") as opened:
        assert np.array_equal(np.array(nano(opened).image), np.array(upright))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5), np.uint8), r"image 1: expected uint8 \(H, W, 3\), got uint8 \(4, 5\)"),
        (np.zeros((4, 5, 3), np.float32), r"expected uint8 \(H, W, 3\), got float32"),
        (torch.zeros(4, 5), r"expected a tensor \(3, H, W\), got \(4, 5\)"),
        (torch.full((3, 4, 5), 2.0), "expected RGB from 0 to 1, not normalised; got values from 2 to 2"),
        (torch.full((3, 4, 5), float("nan")), "expected RGB from 0 to 1"),
        (torch.zeros(3, 4, 5, dtype=torch.int64), "of floats from 0 to 1 or of uint8, got torch.int64"),
        (torch.zeros(3, 0, 5), r"got \(3, 0, 5\)"),
        (b"no image", "image 1: not a readable image"),
        ([3], "image 1: expected a path, .* got int"),
        ("missing.png", "missing.png"),
    ],
)
def test_what_is_not_an_image_is_named(nano, image, message):
    with pytest.raises(UserError, match=message):
        nano(image)


def test_results_of_files_hold_no_pixels(nano, photo, tmp_path):
    photo.save(tmp_path / "photo.png")
    result = nano(tmp_path / "photo.png")
    assert result.source == tmp_path / "photo.png"
    assert result.hw == (118, 173)
    assert np.array_equal(np.array(result.image), np.array(photo))
    assert nano(photo).image.tobytes() == photo.tobytes()


def test_one_unreadable_image_does_not_end_a_stream(nano, tmp_path):
    (tmp_path / "notes.png").write_text("not an image")
    errors = []
    found = list(nano.stream([CAT, tmp_path / "notes.png", CAT], on_error=errors.append))
    assert [result.index for result in found] == [0, 2]
    assert len(errors) == 1
    assert "notes.png" in str(errors[0])


@pytest.mark.parametrize("options", [{"top": 0}, {"threshold": 1.5}, {"batch_size": 0}])
def test_options_out_of_range_are_named(nano, options):
    with pytest.raises(UserError, match=next(iter(options))):
        nano(CAT, **options)


def test_detections(detector, photo):
    predictor = load(str(detector), device="cpu")
    assert (predictor.task, predictor.classes) == ("detection", ["red", "green"])
    result = predictor(photo, threshold=0.0)
    assert 0 < len(result.boxes) <= 9
    assert result.boxes.shape == (len(result.scores), 4)
    assert result.masks.shape == (len(result.scores), 118, 173)
    assert result.masks.dtype == torch.bool
    assert (result.boxes[:, 2:] >= result.boxes[:, :2]).all()
    assert float(result.boxes[:, [0, 2]].max()) <= 173
    assert float(result.boxes[:, [1, 3]].max()) <= 118
    middle = float(result.scores.median())
    fewer = predictor(photo, threshold=middle)
    assert len(fewer.boxes) == int((result.scores >= middle).sum()) < len(result.boxes)
    assert torch.equal(fewer.boxes, result.above(middle).boxes)
    others = result.to_torchvision()
    assert torch.equal(others["labels"], result.labels + 1)  # 0 is the background
    assert others["masks"].shape == (len(result.scores), 1, 118, 173)
    assert others["masks"].dtype == torch.float32
    assert torch.equal(others["masks"][:, 0] >= 0.5, result.masks)
    assert torch.equal(from_torchvision(others)["labels"], result.labels)
    told = json.loads(json.dumps(result.to_dict()))
    assert (told["height"], told["width"]) == (118, 173)
    assert told["objects"][0]["name"] == result.names[0]
    assert told["objects"][0]["box"] == pytest.approx(result.boxes[0].tolist())
    with torch.inference_mode():
        direct = predictor.model([predictor.transform(photo)])[0]
    assert torch.equal(direct["boxes"], result.boxes)
    assert np.array(result.overlay()).shape == (118, 173, 3)
    assert (np.array(result.overlay()) != np.array(photo)).any()


def test_label_maps(segmenter, photo):
    predictor = load(segmenter, device="cpu")
    assert predictor.task == "segmentation"
    assert predictor.description.reduce_zero_label
    results = predictor([photo, photo.crop((0, 0, 50, 90))])
    assert [tuple(result.label_map.shape) for result in results] == [(118, 173), (90, 50)]
    with torch.inference_mode():
        assert torch.equal(results[0].label_map, predictor.model.predict(predictor.transform(photo)))
    told = json.loads(json.dumps(results[0].to_dict()))
    assert sum(told["shares"].values()) == pytest.approx(1)
    assert set(told["shares"]) <= {"sky", "road", "car"}
    assert results[0].draw().width > 173  # a legend beside it


def test_drawn_classes_show_the_image_and_their_bars(nano, photo):
    result = nano(photo)
    drawn = np.array(result.draw()).astype(int)
    times = round(224 / 118)
    enlarged = np.array(photo.resize((times * 173, times * 118), Image.Resampling.LANCZOS))
    assert np.array_equal(drawn[: times * 118, : times * 173], enlarged)
    column = drawn[:, times * 173 :]
    coloured = (column.max(-1) - column.min(-1) > 60).sum(1)  # the bars; text is black
    lengths = [run for run in coloured if run]
    assert lengths[0] == max(lengths)
    assert lengths[0] == pytest.approx(
        float(result.scores[0] / result.scores[1]) * lengths[len(lengths) // 5 + 1], rel=0.2
    )


def test_low_precision(nano, photo):
    half = load("dat_nano.cifar10", device="cpu", dtype=torch.bfloat16)
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert half(CAT).names[0] == "cat"
    assert half(CAT).scores.dtype == torch.float32


def test_a_backbone_predicts_nothing(tmp_path):
    model = timm.create_model("dat_nano", num_classes=0)
    save_model(tmp_path / "body.safetensors", model, ClassifierDescription(name="dat_nano", img_size=32))
    predictor = load(tmp_path / "body.safetensors")
    with pytest.raises(UserError, match=r"body\.safetensors is a backbone without a classifier"):
        predictor(CAT)


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(UserError, match="'nothing.safetensors': no such file, and no packaged weights"):
        load("nothing.safetensors")
    with pytest.raises(UserError, match="an address; download the file"):
        load("https://example.com/model.safetensors")
    with pytest.raises(UserError, match="device 'warp' cannot be used"):
        load("dat_nano.cifar10", device="warp")
    (tmp_path / "model.safetensors").write_bytes(b"12345678{}")
    (tmp_path / "config.json").write_text('{"architecture": "dat_nano", "model_args": {"pretrained": true}}')
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        load(tmp_path)


def test_a_hub_folder_may_name_no_argument_of_its_own(tmp_path):
    save_for_hub(timm.create_model("dat_nano", num_classes=3), tmp_path, classes=["a", "b", "c"])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_args": {"pretrained_cfg": {"url": "http://x"}}}))
    with pytest.raises(UserError, match=r"config\.json: does not describe .*'pretrained_cfg'"):
        load(tmp_path)


@pytest.mark.parametrize("resize", ["shorter", "square"])
def test_pictures_show_what_the_network_sees_at_the_photos_resolution(resize):
    model, described = load_model("dat_nano.cifar10")
    described = dataclasses.replace(described, crop_pct=0.8, resize=resize)
    made = deformvit.inference.predictor(model, described)
    rows, columns = np.mgrid[0:300, 0:500]
    wide = Image.fromarray(np.stack([rows * 255 // 300, columns * 255 // 500, rows * 0], -1).astype(np.uint8))
    for image, side in ((wide, 240), (wide.resize((30, 20)), 32), (wide.resize((3200, 2400)), round(0.8 * 1024))):
        picture = made.picture(image)
        assert picture.size == (side, side)
        small = np.asarray(picture.resize((32, 32), Image.Resampling.BOX), dtype=np.float32) / 255
        assert np.abs(small - made.view(image).permute(1, 2, 0).numpy()).mean() < 0.02
    assert made.picture(wide, (20, 40)).size == (500, 300)
    assert made.picture(wide.resize((3000, 300)), (20, 40)).size == (2048, 205)
