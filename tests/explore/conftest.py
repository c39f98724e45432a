"""A model that wants 224 pixels, with weights that spread their attention; the page of it in headless Chromium."""

from __future__ import annotations

import os
import shutil

import pytest
import timm
import torch
from browsing import serving
from pictures_made import photo

from deformvit import ClassifierDescription, save_model
from deformvit.explore.server import Session

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")

ARGS = {"dims": [16, 32, 64, 64], "num_heads": [1, 2, 4, 4], "groups": [1, 1, 2, 2], "depths": [2, 2, 2, 2]}


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """A classifier for 224 x 224 pixels with random weights, deformable in its last two stages."""
    torch.manual_seed(3)
    model = timm.create_model("dat_tiny", num_classes=6, **ARGS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.0)
            if name.endswith("bias_table"):
                parameter.normal_(std=0.5)
    path = tmp_path_factory.mktemp("explore") / "small.safetensors"
    classes = ["ant", "bee", "cow", "<b>dog</b>", "eel", "fox"]
    save_model(path, model, ClassifierDescription(name="dat_tiny", args=ARGS, classes=classes))
    return path


@pytest.fixture(scope="module")
def address(small_model):
    """A server of the page, with two models and a photo."""
    session = Session([str(small_model), "dat_nano.cifar10"], "cpu")
    session.open(photo(240, 320), "first.jpg")
    with serving(session, ["127.0.0.1"]) as where:
        yield where


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium to try the page in")
    sync_api = pytest.importorskip("playwright.sync_api", reason="the page is tried with playwright")
    with sync_api.sync_playwright() as playwright:
        # Root has no sandbox; the page under test is ours.
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser):
    """A page that must not complain, nor ask anybody but its own server."""
    page = browser.new_page(
        viewport={"width": 1200, "height": 900}, bypass_csp=True
    )  # as the tests' own scripts are text
    page.set_default_timeout(60_000)
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    expected = ("422", "ERR_CONNECTION_REFUSED")  # what the tests ask for

    def complain(line):
        if line.type == "error" and not any(word in line.text for word in expected):
            complaints.append(line.text)

    page.on("console", complain)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    yield page
    page.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:", "file:"))] == []
