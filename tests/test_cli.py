"""The command as a user types it, on the embedded sample and on files."""

from __future__ import annotations

import io
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from deformvit import load, load_model, save_for_hub
from deformvit.data import open_split
from deformvit.models.trace import scale_offsets
from deformvit.runs import read_metrics
from deformvit_command import main

TINY_RUN = [
    "train", "demo", "--run.epochs", "1", "--run.no-progress", "--model.args",
    "dims", "(8, 8, 16, 16)", "num_heads", "(1, 1, 2, 2)", "groups", "1", "depths", "(1, 2, 2, 1)",
]  # fmt: skip


def deformvit(*args) -> None:
    main([str(arg) for arg in args])


def values(text: str) -> dict[str, float]:
    """Names and numbers of the two columns that are printed first."""
    return {name: float(value) for name, value in (line.split() for line in text.split("\n\n")[0].splitlines())}


def fails(capsys, *args) -> str:
    """The one line of an error that the user can mend."""
    with pytest.raises(SystemExit) as stop:
        deformvit(*args)
    assert stop.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith("deformvit: ")
    return err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model trained for an epoch on the embedded sample."""
    output = tmp_path_factory.mktemp("cli") / "run"
    deformvit(*TINY_RUN, "--run.output", output)
    return output / "best.safetensors"


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "boot.png"
    open_split("sample", "val")[0][0].resize((60, 40)).save(path)
    return path


def test_train_and_eval(trained, capsys):
    deformvit("eval", "--model", trained, "--data", "sample", "--workers", "0")
    told = values(capsys.readouterr().out)
    assert told["images"] == 1000
    assert told["top1"] > 30  # chance is 10
    (epoch,) = read_metrics(trained.parent)
    for name in ("top1", "top5"):
        assert told[name] == pytest.approx(epoch[name], abs=0.05)


def parquet(images, labels, classes, path):
    """A validation split whose class names may be no names of folders."""
    contents = []
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        contents.append({"bytes": buffer.getvalue(), "path": None})
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": classes}}
    table = pa.table({"image": contents, "label": labels})
    described = {"huggingface": json.dumps({"info": {"features": features}})}
    path.mkdir()
    pq.write_table(table.replace_schema_metadata(described), path / "val.parquet")


def test_eval_resizes_as_asked(trained, tmp_path, capsys):
    """On stretched images, resizing both sides and cropping the middle measure differently."""
    val = open_split("sample", "val")
    images, labels = zip(*(val[i] for i in range(0, 1000, 10)), strict=True)
    wide = [image.resize((84, 28), Image.Resampling.BICUBIC) for image in images]
    parquet(wide, list(labels), list(val.classes), tmp_path / "wide")
    network, description = load_model(trained)
    assert (description.img_size, description.crop_pct, description.resize) == (32, 1.0, "shorter")
    mean, std = (torch.tensor(value)[:, None, None] for value in (description.mean, description.std))
    prepared = {
        "square": [image.resize((32, 32), Image.Resampling.BICUBIC) for image in wide],
        "shorter": [image.resize((96, 32), Image.Resampling.BICUBIC).crop((32, 0, 64, 32)) for image in wide],
    }
    measured = {}
    for resize, pictures in prepared.items():
        tensors = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255 for picture in pictures])
        with torch.inference_mode():
            logits = network((tensors - mean) / std)
        expected = {
            "images": 100,
            "top1": 100 * float((logits.argmax(1) == torch.tensor(labels)).float().mean()),
            "loss": float(torch.nn.functional.cross_entropy(logits, torch.tensor(labels))),
        }
        deformvit("eval", "-m", trained, "-d", tmp_path / "wide", "--resize", resize, "--workers", 0, "--device", "cpu")
        measured[resize] = values(capsys.readouterr().out)
        assert {name: measured[resize][name] for name in expected} == pytest.approx(expected, rel=1e-3)
    assert abs(measured["square"]["top1"] - measured["shorter"]["top1"]) > 5
    deformvit("eval", "-m", trained, "-d", tmp_path / "wide", "--workers", 0, "--device", "cpu")
    assert values(capsys.readouterr().out) == measured["shorter"]  # as the file says


def test_predict_beyond_a_batch(trained, tmp_path, capsys):
    """Results stand under the names of their images, also where an image between them is unreadable."""
    split = open_split("sample", "val")
    for i in range(8):
        split[101 * i][0].save(tmp_path / f"{i}.png")
    (tmp_path / "4.png").write_bytes(b"not an image")
    predictor = load(trained, device="cpu")
    expected = []
    for i in (0, 1, 2, 3, 5, 6, 7):
        path = tmp_path / f"{i}.png"
        findings = predictor(path, top=2).findings()
        expected += [str(path), *(f"  {finding.text:>7}  {finding.name}" for finding in findings)]
    assert len(set(expected[1::3])) > 3  # the images differ in what is found
    with pytest.raises(SystemExit) as stop:
        deformvit("predict", tmp_path, "-m", trained, "--batch-size", 3, "--top", 2, "--device", "cpu")
    assert stop.value.code == 1
    told = capsys.readouterr()
    assert told.out.splitlines() == expected
    (line,) = told.err.splitlines()
    assert line.startswith(f"deformvit: {tmp_path / '4.png'}: not a readable image")


def test_a_model_by_its_folder(trained, photo, tmp_path, capsys):
    """The folder of a run, and one for the hub, are the model that is in them."""
    save_for_hub(load_model(trained)[0], tmp_path / "hub")
    told = []
    for model in (trained, trained.parent, tmp_path / "hub"):
        deformvit("predict", photo, "--model", model, "--device", "cpu")
        told.append(capsys.readouterr().out)
    assert len(told[0].splitlines()) == 6
    assert told == [told[0]] * 3
    assert "no such file" in fails(capsys, "predict", photo, "--model", tmp_path)  # a folder without weights


def test_predict_files_and_folders(trained, photo, capsys):
    folder = photo.parent / "more" / "deep"
    folder.mkdir(parents=True)
    Image.open(photo).convert("L").save(folder / "grey.jpg")
    (folder / "notes.txt").write_text("not an image, and not looked at")
    deformvit("predict", photo, photo.parent / "more", "--model", trained, "--top", "3")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(photo)
    assert lines[4] == str(folder / "grey.jpg")
    chances = [float(line.split("%")[0]) for line in lines[1:4]]
    assert chances == sorted(chances, reverse=True)
    classes = open_split("sample", "val").classes
    assert all(line.split("%")[1].strip() in classes for line in lines[1:4])


def test_predict_names_a_broken_file_and_goes_on(trained, photo, capsys):
    broken = photo.parent / "a_broken.png"
    broken.write_text("text file named .png")
    with pytest.raises(SystemExit) as stop:
        deformvit("predict", photo.parent, "--model", trained)
    assert stop.value.code == 1
    captured = capsys.readouterr()
    assert str(photo) in captured.out
    assert f"{broken}: not a readable image" in captured.err


def test_predict_with_packaged_weights(capsys):
    deformvit("predict", "photo", "--top", "2")
    assert "cat" in capsys.readouterr().out.splitlines()[1:][0]
    deformvit("predict", "sample", "--top", "1")
    assert capsys.readouterr().out.count("sample") == 8


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_figure_points(trained, photo, tmp_path, suffix):
    deformvit(
        "figure", "points", photo, "--model", trained, "--output", tmp_path / "out", "--format", suffix, "--dpi", 80
    )
    from deformvit import figures
    from deformvit.explore import look

    drawn = tmp_path / "out" / f"boot_points.{suffix}"
    seen = look(load(trained, device="cpu"), photo)
    expected = figures.points(seen.overlay, seen.trace.deformable, title=f"boot: {seen.headline}", hw=seen.hw)
    if suffix == "png":
        expected.savefig(tmp_path / "expected.png", dpi=80)
        pixels, wanted = (matplotlib.image.imread(path) for path in (drawn, tmp_path / "expected.png"))
        assert pixels.shape == wanted.shape
        assert (np.abs(pixels - wanted).max(-1) > 0.1).mean() < 0.01
        assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 50  # something is drawn
    elif suffix == "svg":
        root = ElementTree.parse(drawn).getroot()
        panels = [
            group for group in root.iter(root.tag.replace("}svg", "}g")) if group.get("id", "").startswith("axes")
        ]
        assert len(panels) == len(expected.axes)
    else:
        content = drawn.read_bytes()
        assert content.startswith(b"%PDF")
        assert content.rstrip().endswith(b"%%EOF")


def test_figure_of_chosen_layers(trained, photo, tmp_path):
    named = ["--layers", "stage 2, block 2", "Stage 4,  block 1"]
    for folder, layers in (("all", []), ("two", ["--layers", 1, 3]), ("named", named)):
        deformvit("figure", "points", photo, "--model", trained, "--output", tmp_path / folder, "--dpi", 50, *layers)
    sizes = [Image.open(tmp_path / folder / "boot_points.png").size for folder in ("all", "two")]
    assert sizes[0] != sizes[1]
    two, same = (matplotlib.image.imread(tmp_path / folder / "boot_points.png") for folder in ("two", "named"))
    np.testing.assert_array_equal(two, same)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("keys", ["--count", 20]),
        ("summary", ["--point", 0.4, 0.5, "--width", 12]),
        ("summary", ["--compare", "dat_nano.cifar10", "--size", 40, 56]),
        ("keys", ["--point", 0.2, 0.9]),
        ("query", ["--heads", "each", "--layers", 2]),
        ("query", ["--heads", "1", "--compare", "dat_nano.cifar10", "--size", 40, 56]),
        ("offsets", ["--size", 33, 70, "--width", 5]),
        ("points", ["--size", 48, 32]),
    ],
)
def test_every_kind_of_figure(trained, photo, tmp_path, capsys, kind, options):
    deformvit("figure", kind, photo, "--model", trained, "--output", tmp_path, "--dpi", 60, *options)
    target = tmp_path / f"boot_{kind}.png"
    pixels = matplotlib.image.imread(target)
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 50
    printed = capsys.readouterr().out
    assert str(target) in printed
    if kind == "offsets":
        assert pixels.shape[1] == 300
        assert "stage 4, block 1" in printed
        assert "off the map" in printed
        assert "Grids lie up and left of the image's middle" in printed
    if kind == "summary" and "--width" in options:
        assert pixels.shape[1] == 720


def test_figures_go_on_after_a_broken_file(trained, photo, tmp_path, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    for more in ([], ["--html"]):
        message = fails(
            capsys, "figure", "keys", broken, photo, "--model", trained, "--output", tmp_path / "out", *more
        )
        assert "broken.png: not a readable image" in message
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["boot_keys.png", "explore.html"]


def test_figure_of_runs(trained, tmp_path):
    deformvit("figure", "curves", trained.parent, trained.parent, "--output", tmp_path, "--format", "pdf")
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["objects", "photo"], "objects is for detectors and segmentation networks"),
        (["query", "photo", "--point", "0.5", "1.5"], "point must be two shares from 0 to 1, got 0.5 and 1.5"),
        (["query", "photo", "--heads", "some"], "heads must be mean, each, or numbers such as 1,3; got 'some'"),
        (["query", "photo", "--heads", "9", "--layers", "1"], "there is no head 9"),
        (["points", "photo", "--layers", "7"], "there is no layer '7'; there are stage 1, block 1; stage 2"),
        (
            ["keys", "photo", "--layers", "stage 3, block 9"],
            "layers of dat_nano.cifar10: there is no layer 'stage 3, block 9'",
        ),
        (["offsets", "photo", "--layers", "stage 3, block 1"], "stage 3, block 1 is a window layer, which has no"),
        (
            ["points", "photo", "--compare", "dat_nano.cifar10"],
            "compare is for query, summary and --html, not for points",
        ),
        (["points", "photo", "--size", "0", "5"], "size must be a height and a width"),
        (["curves", "photo"], "no such file; curves are drawn of folders that `deformvit train` wrote"),
        (["curves", "photo", "--html"], "html shows images"),
        (["keys", "photo", "--dpi", "0"], "dpi and width must be positive"),
    ],
)
def test_wrong_figures_are_told(tmp_path, capsys, words, message):
    assert message in fails(capsys, "figure", *words, "--output", tmp_path)


def test_explore_serves_and_says_where(trained, photo, tmp_path):
    command = [
        sys.executable,
        "-m",
        "deformvit",
        "explore",
        str(photo),
        "--model",
        str(trained),
        "--port",
        "0",
        "--no-open",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            line = server.stderr.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+/", line)
            assert found, line + server.stderr.read()
            with urllib.request.urlopen(found[0] + "api/known", timeout=30) as reply:
                known = json.load(reply)
            assert known["models"] == [trained.parent.name]
            assert [image["name"] for image in known["images"]] == ["boot.png"]
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)
    assert server.returncode == 130


def test_explore_at_a_port_that_is_taken(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = fails(capsys, "explore", "--port", port, "--no-open")
    assert f"cannot listen at 127.0.0.1, port {port}" in message


def test_figure_moves_with_the_points(trained, tmp_path):
    """The drawn points are the model's; with offsets switched off they lie on the reference grid, without arrows."""
    from deformvit import figures, record

    model, _ = load_model(trained)
    image, x = torch.rand(3, 32, 48), torch.randn(1, 3, 32, 48)
    for scale in (1.0, 0.0):
        with scale_offsets(model, scale), record(model) as trace, torch.inference_mode():
            model(x)
        layer = trace.deformable[0]
        arrows, *points = figures.points(image, trace.deformable).axes[0].collections
        reference, deformed = (np.asarray(marks.get_offsets()) for marks in points)
        expected = layer.pixels(layer.deformed[0, 0], (32, 48)).reshape(-1, 2).flip(-1)  # Matplotlib wants (x, y)
        np.testing.assert_allclose(deformed, expected.numpy(), rtol=1e-5)
        np.testing.assert_allclose(np.stack([arrows.U, arrows.V], 1), deformed - reference, atol=1e-4)
        moved = np.abs(deformed - reference).max()
        assert moved > 0.1 if scale else moved < 1e-4


def test_figure_without_matplotlib_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [name for name in sys.modules if name.startswith(("deformvit.figures", "matplotlib."))]:
        monkeypatch.delitem(sys.modules, name)
    assert "pip install 'deformvit[figures]'" in fails(capsys, "figure", "points", "photo")


def test_figure_of_a_model_without_points_is_told():
    from deformvit import figures

    with pytest.raises(ValueError, match="no deformable layers"):
        figures.points(torch.rand(3, 8, 8), [])


def test_convert_reports(tmp_path, golden, capsys):
    torch.save(golden("dat_micro").state_dict(), tmp_path / "micro.pth")
    err = fails(capsys, "convert", tmp_path / "micro.pth", tmp_path / "out.safetensors", "--model", "dat_tiny")
    assert "micro.pth: not weights of dat_tiny: the checkpoint is of another architecture" in err
    assert not (tmp_path / "out.safetensors").exists()
    err = fails(capsys, "convert", tmp_path / "none.pth", tmp_path / "out.safetensors", "--model", "dat_tiny")
    assert "none.pth: no such file" in err
    wrong = {
        (tmp_path / "micro.pth",): "--model",
        (tmp_path, "--model", "dat_tiny"): "not a file",
        ("https://host/a.pth", "--model", "dat_tiny"): "https://host/a.pth: an address; download the file first",
        (tmp_path / "micro.pth", "--config", "none.yaml"): "none.yaml: no such file",
    }
    for (source, *more), message in wrong.items():
        assert message in fails(capsys, "convert", source, tmp_path / "out.safetensors", *more)


def test_convert_a_released_file(tmp_path, golden, capsys, photo):
    torch.save({"model": golden("dat_tiny").state_dict()}, tmp_path / "tiny.pth")
    target = tmp_path / "tiny.safetensors"
    deformvit("convert", tmp_path / "tiny.pth", target, "--model", "dat_tiny", "--dtype", "float32")
    assert "dat_tiny, 28,319,138 parameters, 1000 classes" in capsys.readouterr().out
    deformvit("predict", photo, "--model", target, "--top", "2")
    assert capsys.readouterr().out.count("%") == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["predict"], "no images: name files or folders"),
        (["predict", "nowhere.png"], "nowhere.png: no such file or folder"),
        (["predict", "https://example.com/cat.jpg"], "'https://example.com/cat.jpg': an address; download the image"),
        (["predict", "sample", "--top", "0"], "top must be at least 1, got 0"),
        (
            ["predict", "sample", "--model", "https://example.com/a.safetensors"],
            "'https://example.com/a.safetensors': an address; download the file and give its path",
        ),
        (["eval", "--data", "sample", "--model", "hf-hub:someone/model"], "'hf-hub:someone/model': an address"),
        (["eval", "--data", "sample", "--model", "missing.safetensors"], "'missing.safetensors': no such file"),
        (["predict", "sample", "--csv", "/dev/null/a.csv"], "/dev/null/a.csv cannot be written: "),
        (["eval", "--data", "sample", "--output", "/dev/null/a"], "/dev/null/a: no folder can be made there: "),
        (["eval", "--data", "sample", "--batch-size", "0"], "batch_size must be at least 1"),
        (["train", "demo", "--data.root", "nowhere"], "data.root 'nowhere': no such file or folder"),
        (["train", "demo", "--model.name", "dat_giant"], "dat_giant"),
        (["figure", "points", "sample", "--device", "warp"], "device 'warp'"),
        (["figure", "points", "photo", "--layers", "2", "9"], "there is no layer '9'; there are stage 1, block 1;"),
    ],
)
def test_errors_are_one_line(capsys, args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    err = fails(capsys, *args)
    assert message in err
    assert err.count("\n") == 1


def test_bad_value_of_an_option_is_named(capsys):
    with pytest.raises(SystemExit) as stop:
        deformvit("train", "demo", "--run.keep", "0")
    assert stop.value.code == 2
    assert "run.keep must be positive, got 0" in capsys.readouterr().err


def test_eval_on_other_classes_is_told(trained, tmp_path, capsys):
    (tmp_path / "val" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "val" / "cat" / "a.png")
    assert "has classes cat, ... (1), but" in fails(capsys, "eval", "--model", trained, "--data", tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_corrupt_training_image_is_named(tmp_path, capsys, workers):
    for split in ("train", "val"):
        (tmp_path / split / "cat").mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 8)).save(tmp_path / split / "cat" / f"{i}.png")
    (tmp_path / "train" / "cat" / "2.png").write_bytes(b"no image")
    err = fails(
        capsys, *TINY_RUN, "--data.root", tmp_path, "--data.workers", workers, "--data.batch-size", 4,
        "--data.max-unreadable", 0, "--run.output", tmp_path / "run",
    )  # fmt: skip
    assert "cat/2.png: not a readable image" in err
    assert err.count("\n") == 1


def test_empty_folder_is_told(tmp_path, capsys):
    assert "no images in this folder" in fails(capsys, "predict", tmp_path)


@pytest.mark.parametrize("command", [[], ["train"], ["train", "demo"], ["eval"], ["predict"], ["figure"], ["convert"]])
def test_help(command):
    shown = subprocess.run(
        [sys.executable, "-m", "deformvit", *command, "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "usage: deformvit" in shown
    if command == ["train", "demo"]:
        assert "--optim.lr" in shown
        assert "Peak learning rate" in shown


def test_plan_of_a_run(capsys, tmp_path):
    """Before ImageNet is there, and with data; nothing is written."""
    main(["train", "dat-tiny-imagenet", "--dry-run", "--run.device", "cpu", "--run.accumulate", "16"])
    told = " ".join(capsys.readouterr().out.split())
    assert "model.drop_path_rate 0.2" in told
    assert "weight decay 0.05" in told
    assert "1,281,167 (fake data: the images are not there)" in told
    assert "1024 images = 1 processes x 16 batches x 64 images" in told
    assert "the run 375,300 steps" in told
    assert "warm-up 25,020 steps" in told
    assert float(told.split("activations ")[1].split()[0]) == pytest.approx(4.83, rel=0.1)  # GiB for 64 images
    main([*map(str, TINY_RUN), "--dry-run", "--run.output", str(tmp_path / "run")])
    told = " ".join(capsys.readouterr().out.split())
    assert "training images 6,000" in told
    assert "the run" in told
    assert not (tmp_path / "run").exists()


def test_recipes_are_listed_with_published_results(capsys):
    main(["recipes"])
    told = capsys.readouterr().out
    for name, result in (
        ("dat-tiny-imagenet", "82.0 %"), ("datpp-base-384-finetune", "85.9 %"), ("upernet-dat-base", "49.38 mIoU"),
    ):  # fmt: skip
        (line,) = [line for line in told.splitlines() if line.split()[0] == name]
        assert result in line
