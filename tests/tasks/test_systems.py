"""Detectors and segmenters as users train and use them: trained, resumed, evaluated and drawn by commands."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from deformvit import UserError, drawing, load, load_model, recipes, systems
from deformvit.data.segmentation import open_segmentation
from deformvit.engine import loop
from deformvit.engine.loader import steps_per_epoch
from deformvit.engine.optim import build_optimizer
from deformvit.figures import common as figures
from deformvit.metrics.segmentation import SegmentationMetrics
from deformvit.models import files
from deformvit.tasks.detection import Detection
from deformvit.tasks.segmentation import Segmentation
from deformvit_command import main

TINY = {"dims": "(16, 16, 32, 32)", "num_heads": "(1, 1, 2, 2)", "groups": "1", "depths": "(1, 2, 2, 1)"}
DETECTORS = ["mask-rcnn-dat-nano-nuclei", "cascade-mask-rcnn-dat-nano-nuclei", "retinanet-dat-nano-bccd"]
SEGMENTERS = ["semantic-fpn-dat-nano-camvid", "upernet-dat-nano-camvid"]


def small(recipe, root, output, epochs=2):
    config = recipes.ALL[recipe]()
    config.model.args, config.model.checkpoint = dict(TINY), ""
    config.data.root = str(root)
    config.run.output, config.run.epochs, config.run.eval_every, config.run.progress = output, epochs, 1, False
    config.head.channels = 32
    if recipe in DETECTORS:
        config.data.min_size, config.data.eval_size, config.data.crop_size = (40, 48), 48, 40
        config.head.box_channels, config.head.rois, config.head.proposals, config.head.detections = 32, 32, 32, 20
    else:
        config.data.batch_size, config.data.scale, config.data.crop_size = 4, (48, 64), 48
    return config


def task(config):
    return (Detection if hasattr(config.head, "rois") else Segmentation)(config)


def main_metric(recipe):
    return "mIoU" if recipe in SEGMENTERS else "box_AP" if "retinanet" in recipe else "mask_AP"


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(shapes, labelled, tmp_path_factory):
    """A run of each system: recipe -> folder."""
    root = tmp_path_factory.mktemp("runs")
    for recipe in (*DETECTORS, *SEGMENTERS):
        config = small(recipe, shapes if recipe in DETECTORS else labelled, root / recipe)
        loop.fit(task(config), config)
    return root


@pytest.mark.parametrize("recipe", DETECTORS + SEGMENTERS)
def test_a_run_leaves_numbers_and_a_model(trained, recipe):
    lines = metrics(trained / recipe)
    assert len(lines) == 2
    if recipe in DETECTORS:
        expected = {"box_AP", "box_AP50", "box_AP75"} | (set() if "retinanet" in recipe else {"mask_AP50"})
    else:
        expected = {"mIoU", "mAcc", "aAcc"}
    for line in lines:
        assert expected <= set(line)
        assert all(0 <= line[name] <= 100 for name in expected)
        assert 0 < line["train_loss"] < 100
    model, description = load_model(trained / recipe / "best.safetensors")
    assert not model.training
    assert description.classes == (["red", "green"] if recipe in DETECTORS else ["background", "red", "green"])
    key = main_metric(recipe)
    best = max(lines, key=lambda line: line[key])
    assert {name: description.metrics[name] for name in expected} == {name: best[name] for name in expected}


@pytest.mark.parametrize("recipe", [DETECTORS[0], SEGMENTERS[1]])
def test_a_resumed_run_is_the_same(trained, shapes, labelled, tmp_path, recipe):
    config = small(recipe, shapes if recipe in DETECTORS else labelled, tmp_path / "run", epochs=2)

    class Stopped(Exception):
        pass

    stopped = task(config)
    losses, count = stopped.losses, steps_per_epoch(stopped.train_set, config)
    steps = itertools.count(1)

    def losses_until_the_second_epoch(*batch):
        if next(steps) == count + 2:
            raise Stopped
        return losses(*batch)

    stopped.losses = losses_until_the_second_epoch
    config.run.save_minutes = 1e-9  # after every step
    with pytest.raises(Stopped):
        loop.fit(stopped, config)
    config.run.resume = config.run.output
    loop.fit(task(config), config)
    resumed = files.open_model_file(tmp_path / "run" / "best.safetensors").tensors()
    uninterrupted = files.open_model_file(trained / recipe / "best.safetensors").tensors()
    assert resumed.keys() == uninterrupted.keys()
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in resumed)
    assert metrics(tmp_path / "run")[1]["train_loss"] == metrics(trained / recipe)[1]["train_loss"]


def run(*arguments):
    main([str(argument) for argument in arguments])


def values(text):
    return {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if len(line.split()) == 2}


@pytest.mark.parametrize("recipe", DETECTORS + SEGMENTERS)
def test_eval_measures_what_training_did(trained, shapes, labelled, recipe, capsys):
    root = shapes if recipe in DETECTORS else labelled
    run("eval", "--model", trained / recipe / "best.safetensors", "--data", root, "--workers", 0, "--device", "cpu")
    measured = values(capsys.readouterr().out)
    key = main_metric(recipe)
    assert measured["images"] == 5
    assert measured[key] == pytest.approx(max(line[key] for line in metrics(trained / recipe)), abs=0.01)
    if recipe in SEGMENTERS:
        assert {"IoU/background", "IoU/red", "IoU/green"} <= set(measured)


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        (("--scales", 0.75, 1.0), {"scales": (0.75, 1.0)}),
        (("--flip",), {"flip": True}),
        (("--window", 40), {"window": 40}),
        (("--window", 40, "--window-stride", 10), {"window": 40, "stride": 10}),
        (("--scales", 0.75, 1.0, "--flip", "--window", 40), {"scales": (0.75, 1.0), "flip": True, "window": 40}),
    ],
)
def test_segmentation_evaluates_scales_flips_and_windows(trained, labelled, capsys, options, arguments):
    """As the segmenter predicts with these arguments, whose meaning tests/systems hold; and each has an effect."""
    path = trained / SEGMENTERS[0] / "best.safetensors"
    model, _ = load_model(path)
    images = open_segmentation(str(labelled), "val")
    expected, plain = SegmentationMetrics(3), SegmentationMetrics(3)
    with torch.inference_mode():
        for image, labels in images:
            expected.update(model.predict(image / 255, **arguments), labels)
            plain.update(model.predict(image / 255), labels)
    assert not torch.equal(expected.matrix, plain.matrix)
    run("eval", "-m", path, "-d", labelled, "--workers", 0, "--device", "cpu", *options)
    measured = values(capsys.readouterr().out)
    assert measured["images"] == 5
    for name, value in expected.compute().items():
        assert measured[name] == pytest.approx(value, abs=0.01)


def without_one(root, folder, damaged):
    """A copy of a data set whose validation image 1 is damaged, or missing."""
    shutil.copytree(root, folder)
    (image,) = folder.glob("**/val*/1.png") if root.name.startswith("shapes") else folder.glob("images/val*/1.png")
    if damaged:
        image.write_bytes(image.read_bytes()[:50])
        return folder
    for path in folder.glob("**/val*/1.png"):
        path.unlink()
    for path in folder.glob("val.json"):
        content = json.loads(path.read_text())
        content["images"] = [entry for entry in content["images"] if entry["file_name"] != "1.png"]
        path.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("recipe", [DETECTORS[0], SEGMENTERS[0]])
def test_damaged_images_are_left_out(trained, shapes, labelled, recipe, tmp_path, capsys):
    root = shapes if recipe in DETECTORS else labelled
    model = trained / recipe / "best.safetensors"
    measured = []
    for damaged in (True, False):
        data = without_one(root, tmp_path / str(damaged), damaged)
        run("eval", "--model", model, "--data", data, "--workers", 0, "--device", "cpu")
        printed = capsys.readouterr()
        measured.append(values(printed.out))
        assert printed.err.count("left out of the evaluation: ") == damaged
        assert ("1.png: not a readable image" in printed.err) == damaged
    assert measured[0]["images"] == 4
    assert measured[0] == pytest.approx(measured[1], nan_ok=True)
    run("eval", "--model", model, "--data", root, "--workers", 0, "--device", "cpu")
    complete = values(capsys.readouterr().out)
    key = "box_AP" if recipe in DETECTORS else "mIoU"
    assert complete[key] != pytest.approx(measured[0][key], abs=0.01)


@pytest.mark.parametrize("recipe", [DETECTORS[0], SEGMENTERS[0]])
def test_several_processes_measure_the_same(trained, shapes, labelled, recipe, tmp_path, capsys):
    root = without_one(shapes if recipe in DETECTORS else labelled, tmp_path / "damaged", True)
    model = str(trained / recipe / "best.safetensors")
    arguments = ["eval", "--model", model, "--data", str(root), "--workers", "0", "--device", "cpu"]
    run(*arguments)
    alone = values(capsys.readouterr().out)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    done = subprocess.run(
        [*command[:3], "--standalone", *command[3:5], "-m", "deformvit", *arguments], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shared = values(done.stdout)
    assert shared.keys() == alone.keys()  # printed once
    for name, value in alone.items():
        assert shared[name] == pytest.approx(value, abs=0.02, nan_ok=True)


def test_predict_draws_and_writes_coco_results(trained, shapes, tmp_path, capsys):
    model = trained / DETECTORS[0] / "best.safetensors"
    network, _ = load_model(model)
    run("predict", shapes / "val", "--model", model, "--output", tmp_path / "out", "--threshold", 0.0)
    printed = capsys.readouterr().out
    assert str(tmp_path / "out" / "0.png") in printed
    listed = json.loads((tmp_path / "out" / "images.json").read_text())
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [c["name"] for c in listed["categories"]] == ["red", "green"]
    assert len(listed["images"]) == 5
    first = listed["images"][0]
    with Image.open(first["file_name"]) as image, Image.open(tmp_path / "out" / "0.png") as drawn:
        assert (first["height"], first["width"]) == (image.height, image.width)
        assert drawn.width == round(448 / min(image.size)) * image.width  # enlarged, as it is small
        assert drawn.height > image.height  # with a caption below
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255
    with torch.inference_mode():
        found = network([pixels])[0]
    mine = [r for r in results if r["image_id"] == first["id"]]
    assert len(mine) == len(found["scores"])
    for result, (left, top, right, bottom), score in zip(mine, found["boxes"].tolist(), found["scores"], strict=True):
        assert result["bbox"] == pytest.approx([left, top, right - left, bottom - top], abs=0.01)
        assert result["score"] == pytest.approx(float(score), abs=1e-4)
        assert result["segmentation"]["size"] == [first["height"], first["width"]]
    assert {r["category_id"] for r in results} <= {1, 2}


def test_predict_writes_label_maps(trained, labelled, tmp_path):
    model = trained / SEGMENTERS[1] / "best.safetensors"
    image = labelled / "images" / "validation" / "0.png"
    run("predict", image, "--model", model, "--output", tmp_path)
    network, _ = load_model(model)
    with Image.open(image) as picture, Image.open(tmp_path / "0_labels.png") as labels:
        pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1) / 255
        with torch.inference_mode():
            assert np.array_equal(np.array(labels), network.predict(pixels).numpy())
        expected = drawing.labels(pixels, torch.from_numpy(np.array(labels)), ["background", "red", "green"])
        with Image.open(tmp_path / "0.png") as drawn:
            assert np.array_equal(np.array(drawn), np.array(expected))


def test_predict_writes_objects_as_json_and_csv(trained, shapes, tmp_path, capsys, monkeypatch):
    """Objects from the threshold on; pictures and COCO's results, which have all, where a folder is named."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(b"not an image")
    photo, predictor = shapes / "val" / "0.png", load(trained / DETECTORS[0], device="cpu")
    every = predictor(photo, threshold=0.0)
    threshold = float(every.scores[2])
    command = ["predict", "a.png", photo, "-m", trained / DETECTORS[0], "--threshold", threshold, "--device", "cpu"]
    fails(capsys, *command, "--json", "found.json", "--csv", "found.csv")
    assert not (tmp_path / "predictions").exists()
    broken, entry = json.loads((tmp_path / "found.json").read_text())
    assert broken["image"] == "a.png"
    assert entry == {"image": str(photo), **predictor(photo, threshold=threshold).to_dict()}
    header, error, *rows = csv.reader((tmp_path / "found.csv").read_text().splitlines())
    assert header == ["image", "name", "score", "x1", "y1", "x2", "y2", "error"]
    assert error == ["a.png", *[""] * 6, broken["error"]]
    assert len(rows) == len(entry["objects"]) == 3
    for row, found in zip(rows, entry["objects"], strict=True):
        assert row[:2] == [str(photo), found["name"]]
        assert [float(value) for value in row[2:7]] == pytest.approx([found["score"], *found["box"]], abs=0.006)
    capsys.readouterr()
    run(*command[:1], *command[2:], "--csv", "-", "-o", "out")
    told = capsys.readouterr()
    assert list(csv.reader(told.out.splitlines())) == [header, *rows]
    assert told.err.splitlines()[-1] == "out/results.json"
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())) == len(every.scores)


def test_predict_writes_shares_as_json_and_csv(trained, labelled, tmp_path, capsys):
    image, model = labelled / "images" / "validation" / "0.png", trained / SEGMENTERS[1]
    run("predict", image, "-m", model, "--json", tmp_path / "a.json", "--csv", "-", "-o", tmp_path / "out")
    (entry,) = json.loads((tmp_path / "a.json").read_text())
    expected = load(model, device="cpu")(image).to_dict()
    assert entry["label_map"] == str(tmp_path / "out" / "0_labels.png")  # where the numbers of pixels are
    assert np.array_equal(np.array(Image.open(entry.pop("label_map"))), expected.pop("label_map"))
    assert entry == {"image": str(image), **expected}
    header, *rows = csv.reader(capsys.readouterr().out.splitlines())
    assert header == ["image", "name", "share", "error"]
    assert {row[1]: float(row[2]) for row in rows} == pytest.approx(expected["shares"], abs=1e-5)


@pytest.mark.parametrize("recipe", [DETECTORS[0], SEGMENTERS[1]])
def test_images_of_the_same_name_have_outputs_of_their_own(trained, shapes, tmp_path, capsys, recipe):
    """Two folders with an image of the same name, and between them one that is unreadable."""
    inputs = [tmp_path / folder / "0.png" for folder in ("first", "second", "third")]
    for path in inputs:
        path.parent.mkdir()
    shutil.copy(shapes / "val" / "0.png", inputs[0])
    inputs[1].write_bytes(b"not an image")
    shutil.copy(shapes / "val" / "1.png", inputs[2])
    model, output = trained / recipe / "best.safetensors", tmp_path / "out"
    message = fails(
        capsys, "predict", *inputs, "-m", model, "-o", output, "--threshold", 0.0, "--batch-size", 2, "--device", "cpu"
    )
    assert message.count("\n") == 1
    assert f"{inputs[1]}: not a readable image" in message
    predictor = load(model, device="cpu")
    names = {path.name for path in output.iterdir()}
    pictures = {inputs[0]: "0", inputs[2]: "0__"}
    if recipe in DETECTORS:
        assert names == {"0.png", "0__.png", "results.json", "images.json"}
        images = json.loads((output / "images.json").read_text())["images"]
        assert [image["file_name"] for image in images] == [str(path) for path in pictures]
        found = json.loads((output / "results.json").read_text())
    else:
        assert names == {"0.png", "0_labels.png", "0__.png", "0___labels.png"}
    for number, (path, name) in enumerate(pictures.items(), 1):
        result = predictor(path, threshold=0.0)
        with Image.open(output / f"{name}.png") as drawn:
            assert np.array_equal(np.array(drawn.convert("RGB")), np.array(result.draw().convert("RGB")))
        if recipe in DETECTORS:
            scores = [entry["score"] for entry in found if entry["image_id"] == number]
            assert scores == pytest.approx(result.scores.tolist(), abs=1e-4)
        else:
            with Image.open(output / f"{name}_labels.png") as labels:
                assert np.array_equal(np.array(labels), result.label_map.numpy())


@pytest.mark.parametrize("recipe", [DETECTORS[1], SEGMENTERS[0]])
def test_points_over_predictions(trained, shapes, recipe, tmp_path, capsys):
    """Deformed points in the colour of their group, over boxes or labels in the colours of their classes."""
    model, image = trained / recipe / "best.safetensors", shapes / "val" / "0.png"
    group = tuple(int(figures.COLOURS[0][i : i + 2], 16) for i in (1, 3, 5))
    for kind, options in (("points", ("--layers", 1, 3)), ("objects", ("--threshold", 0.0))):
        run("figure", kind, image, "-m", model, "-o", tmp_path, "--dpi", 80, *options)
        with Image.open(tmp_path / f"0_{kind}.png") as picture:
            colours = np.array(picture.convert("RGB")).reshape(-1, 3)
        assert (colours == group).all(1).sum() > 100
        if kind == "objects" and recipe in DETECTORS:
            boxes = sum((colours == colour).all(1).sum() for colour in drawing.palette(2))
            assert boxes > 100
    run("figure", "query", image, "-m", model, "-o", tmp_path, "--html")
    assert '"changes":true' in (tmp_path / "explore.html").read_text()


def fails(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 1
    return capsys.readouterr().err


def test_categories_that_a_checkpoint_does_not_know_are_named(trained, shapes, tmp_path, capsys):
    described = json.loads((shapes / "val.json").read_text())
    described["categories"][0]["name"] = "blue"
    other = tmp_path / "other"
    other.mkdir()
    (other / "val.json").write_text(json.dumps(described))
    (other / "val").symlink_to(shapes / "val")
    model = trained / DETECTORS[0] / "best.safetensors"
    message = fails(capsys, "eval", "--model", model, "--data", other, "--workers", 0)
    assert message == (
        f"deformvit: {other / 'val.json'}: categories blue are unknown to the model, which knows red, green\n"
    )


def test_fine_tuning_on_other_classes_keeps_the_rest(trained, shapes, labelled, tmp_path, capsys):
    source = trained / DETECTORS[0] / "best.safetensors"
    config = small(DETECTORS[0], shapes, tmp_path / "run")
    config.model.checkpoint = str(source)
    same = Detection(config).build_model()
    tensors = files.open_model_file(source).tensors()
    assert all(torch.equal(value, tensors[name]) for name, value in same.state_dict().items())
    other = systems.build_detector(config, 5, {k: eval(v) for k, v in TINY.items()})
    fresh = [name for name, value in other.state_dict().items() if value.shape != tensors[name].shape]
    assert {name.split(".")[-2] for name in fresh} == {"cls_score", "bbox_pred", "mask_fcn_logits"}
    assert "weights of other shapes are not loaded" in capsys.readouterr().err
    config = small(SEGMENTERS[0], labelled, tmp_path / "run")
    config.model.checkpoint = str(source)
    with pytest.raises(UserError, match="another architecture than this run's"):
        Segmentation(config).build_model()


def test_too_few_images_are_refused(shapes, labelled, tmp_path):
    config = small(DETECTORS[0], shapes, tmp_path)
    config.data.batch_size = 9
    with pytest.raises(UserError, match="8 training images do not fill a batch of 9"):
        loop.fit(Detection(config), config)
    config = small(SEGMENTERS[1], labelled, tmp_path)
    config.data.batch_size = 1
    with pytest.raises(UserError, match="UperNet trains on batches of at least 2 images, data.batch_size is 1"):
        Segmentation(config)


def test_recipes_go_by_either_spelling(shapes, tmp_path, capsys):
    for name in ("retinanet_dat_nano_bccd", "retinanet-dat-nano-bccd"):
        message = fails(capsys, "train", name, "--data.root", tmp_path / "missing")
        assert message == f"deformvit: data.root '{tmp_path / 'missing'}': no such folder\n"


@pytest.mark.parametrize("recipe", [DETECTORS[0], SEGMENTERS[0]])
def test_norms_biases_and_tables_are_not_decayed(shapes, labelled, tmp_path, recipe):
    config = small(recipe, shapes if recipe in DETECTORS else labelled, tmp_path)
    model = task(config).build_model()
    optimizer = build_optimizer(model, config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] > 0 for p in group["params"]}
    spared = set(names.values()) - decayed
    assert any("bias_table" in name for name in spared)
    assert any("output_norms" in name for name in spared)
    assert not any(name.endswith(("bias", "bias_table")) or "norm" in name for name in decayed)


@pytest.mark.parametrize("recipe", [DETECTORS[0], SEGMENTERS[0]])
def test_rates_fall_from_the_heads_to_the_stem(shapes, labelled, tmp_path, recipe):
    config = small(recipe, shapes if recipe in DETECTORS else labelled, tmp_path)
    config.optim.layer_decay = 0.5
    model = task(config).build_model()
    optimizer = build_optimizer(model, config)
    names = {parameter: name for name, parameter in model.named_parameters()}
    scales = {names[p]: group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert scales.keys() == set(names.values())
    heads = [scale for name, scale in scales.items() if "backbone" not in name or ".fpn." in name]
    assert set(heads) == {1.0}
    stem = {scale for name, scale in scales.items() if "model.stem" in name}
    first = {scale for name, scale in scales.items() if "model.stages.0.blocks.0" in name}
    last = {scale for name, scale in scales.items() if "model.stages.3.blocks.0" in name}
    assert max(stem) < max(first) < max(last) < 1
    config.model.name, config.model.args = "resnet18", {}
    with pytest.raises(UserError, match="resnet18 as a pyramid does not say what its layers are"):
        build_optimizer(task(config).build_model(), config)
