"""Image files are opened in one place, in a few formats, from regular files only."""

from __future__ import annotations

import io
import os
import re
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import deformvit
from deformvit.cli.inputs import image_files
from deformvit.data import open_split
from deformvit.data.images import IMAGE_SUFFIXES, decode, image_size, read_annotation
from deformvit.errors import DataError, UnreadableImage

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
1 0 0 setrgbcolor
0 0 8 8 rectfill
showpage
%%EOF
"""


def encoded(format_name: str, mode: str = "RGB") -> bytes:
    image = Image.new("RGB", (8, 5), (200, 30, 40)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, format_name)
    return buffer.getvalue()


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_accepted_formats_whatever_the_suffix(tmp_path, format_name):
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(format_name))
    for image in (decode(path, "photo"), decode(path.read_bytes(), "photo")):
        assert (image.mode, image.size) == ("RGB", (8, 5))
        assert np.abs(np.asarray(image).astype(int) - (200, 30, 40)).max() <= 5
    assert image_size(path) == (5, 8)


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_ppm_covers_pbm_and_pgm(mode):
    assert decode(encoded("PPM", mode), "map").mode == "RGB"


@pytest.mark.parametrize("format_name", ["TGA", "PCX", "SGI", "JPEG2000"])
def test_other_formats_are_refused(format_name):
    with pytest.raises(UnreadableImage, match=r"^a\.png: not a readable image \(expected JPEG, .* or PPM\)$"):
        decode(encoded(format_name), "a.png")


def test_eps_does_not_start_ghostscript(tmp_path, monkeypatch):
    def started(*args, **kwargs):
        pytest.fail(f"started {args}")

    for name in ("Popen", "run", "call", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, name, started)
    path = tmp_path / "photo.png"
    path.write_bytes(EPS)
    for refused in (lambda: decode(path, str(path)), lambda: decode(EPS, str(path)), lambda: image_size(path)):
        with pytest.raises(UnreadableImage) as error:
            refused()
        assert str(error.value) == f"{path}: not a readable image (expected JPEG, PNG, WebP, BMP, GIF, TIFF or PPM)"
    with pytest.raises(DataError, match=r"photo\.png: not a readable PNG \(expected PNG\)"):
        read_annotation(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("read", [lambda path: decode(path, str(path)), image_size, read_annotation])
def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path, read):
    path = tmp_path / "photo.png"
    os.mkfifo(path)
    errors = []

    def attempt() -> None:
        with pytest.raises(DataError) as error:
            read(path)
        errors.append(str(error.value))

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(20)
    assert len(errors) == 1
    assert re.fullmatch(r".*photo\.png: not a readable (image|PNG) \(not a regular file\)", errors[0])


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(UnreadableImage, match=r"^a: not a readable image \(No such file or directory\)$"):
        decode(tmp_path / "a.png", "a")
    with pytest.raises(UnreadableImage, match=r"^a: not a readable image \(not a regular file\)$"):
        decode(tmp_path, "a")


def test_photos_are_turned_when_asked():
    """Orientation 6: the camera was turned clockwise, the first stored row is the right edge of the upright image."""
    stored = Image.new("RGB", (8, 5))
    stored.paste((255, 255, 255), (0, 0, 8, 1))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    stored.save(buffer, "PNG", exif=exif)
    turned = np.asarray(decode(buffer.getvalue(), "photo", upright=True))[..., 0]
    assert np.array_equal(turned, np.asarray(stored)[..., 0].T[:, ::-1])
    assert np.array_equal(decode(buffer.getvalue(), "photo"), stored)


@pytest.mark.parametrize("format_name", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_become_eight(format_name):
    """Converted by Pillow alone, all but the first two pixels would be white."""
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    buffer = io.BytesIO()
    if format_name == "PPM":
        buffer.write(b"P5 5 1 65535 " + values.astype(">u2").tobytes())
    else:
        exif = Image.Exif()
        if format_name == "PNG":
            exif[0x0112] = 3  # upside down
        Image.fromarray(values).save(buffer, format_name, exif=exif)
    decoded = np.asarray(decode(buffer.getvalue(), "scan"))
    assert decoded.tolist() == [[[value] * 3 for value in (0, 0, 1, 128, 255)]]
    if format_name == "PNG":
        assert np.array_equal(decode(buffer.getvalue(), "scan", upright=True), decoded[:, ::-1])


def test_every_reader_finds_the_same_suffixes(tmp_path):
    folder = tmp_path / "train" / "cat"
    folder.mkdir(parents=True)
    for name in (*(f"image{suffix}" for suffix in IMAGE_SUFFIXES), "OTHER.JPG", "image.eps", "image.txt"):
        (folder / name).write_bytes(encoded("PNG"))
    expected = {*(f"image{suffix}" for suffix in IMAGE_SUFFIXES), "OTHER.JPG"}
    assert {path.name for path in image_files([tmp_path])} == expected
    assert {Path(path).name for path, _ in open_split(str(tmp_path), "train").samples} == expected


def test_images_are_opened_in_one_file_only():
    opens = re.compile(r"\bImage\.open\b|\b(imread|read_image|decode_image|pil_loader|default_loader)\(")
    package = Path(deformvit.__file__).parent
    files = [path for path in package.rglob("*.py") if opens.search(path.read_text(encoding="utf-8"))]
    assert files == [package / "data" / "images.py"]
