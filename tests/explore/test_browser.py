"""The page as a person uses it, in headless Chromium: load, click, move, compare, download."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
import urllib.request

import pytest
import uvicorn
from pictures_made import photo
from PIL import Image

from deformvit.explore.page import write_page
from deformvit.explore.server import Session, application

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
sync_api = pytest.importorskip("playwright.sync_api", reason="the page is tried with playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to try the page in")


@pytest.fixture(scope="module")
def address(small_model):
    session = Session([str(small_model), "dat_nano.cifar10"], "cpu")
    session.open(photo(240, 320), "first.jpg")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(application(session, ["127.0.0.1"]), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        where = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        urllib.request.urlopen(where, timeout=30).close()
        yield where
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def browser():
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


def ready(page, where):
    page.goto(where)
    page.wait_for_selector(".found li")
    page.wait_for_function("state.panes.every((pane) => pane.answer)")


def click(page, down, right, pane=0):
    box = page.locator("canvas").nth(pane).bounding_box()
    page.mouse.click(box["x"] + right * box["width"], box["y"] + down * box["height"])


def answers(page, row, column):
    page.wait_for_function(
        f"document.querySelector('.answer').textContent.startsWith('Query at row {row}, column {column} ')"
    )


def pixels(page, pane=0):
    return page.evaluate(f"document.querySelectorAll('canvas')[{pane}].toDataURL()")


def test_click_a_query_and_see_its_keys(page, address):
    ready(page, address)
    assert page.locator(".pane").count() == 2  # two models are compared at once
    before = pixels(page), pixels(page, 1)
    click(page, 0.2, 0.7)
    page.wait_for_function("state.panes.every((pane) => pane.answer && pane.answer.query === queryOf(pane))")
    assert pixels(page) != before[0]
    assert pixels(page, 1) != before[1]  # the same place in the other model
    text = page.locator(".answer").first.inner_text()
    assert "of the attention" in text
    assert "column" in text


def test_its_own_policy_lets_the_page_work(browser, address):
    page = browser.new_page()
    complaints = []
    page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else 0)
    page.goto(address)
    page.wait_for_selector(".found li")
    page.wait_for_selector("text=of the attention")
    page.close()
    assert complaints == []


def test_a_click_is_answered_in_150_ms(page, address):
    ready(page, address)
    took = []
    for i in range(12):
        place = 0.2 + 0.05 * i
        took.append(
            page.evaluate(
                """async (share) => {
                    const started = performance.now();
                    state.point = [share, 1 - share];
                    await answers();
                    return performance.now() - started;
                }""",
                place,
            )
        )
    assert min(took) < 150  # for both models together; the fastest, as other tests run beside


def test_layers_heads_groups_and_switches_change_what_is_drawn(page, address):
    ready(page, address)
    seen = [pixels(page)]
    for action in (
        lambda: page.select_option("#head", index=2),  # of group 1
        lambda: page.select_option("#group", index=2),  # group 2
        lambda: page.uncheck("#arrows"),
        lambda: page.uncheck("#deformed"),
        lambda: page.check("#reference"),
        lambda: page.select_option("#group", index=1),
        lambda: page.check("#bias"),
        lambda: page.uncheck("#attention"),
        lambda: page.select_option("#layer", index=0),
    ):
        action()
        page.wait_for_timeout(200)
        seen.append(pixels(page))
    assert [i for i in range(1, len(seen)) if seen[i] in seen[:i]] == []
    assert page.locator("#group").is_disabled()  # a window layer has none


def test_the_offset_scale_moves_points_and_prediction(page, address):
    ready(page, address)
    page.uncheck("#attention")
    before, found = pixels(page), page.locator(".found").first.inner_text()
    assert page.locator("#scale-text").inner_text() == "s = 2.00 of 2"
    page.locator("#scale").fill("0")
    page.wait_for_function("state.panes.every((pane) => pane.scale === 0)")
    assert page.locator("#scale-text").inner_text() == "s = 0.00 of 2"
    assert pixels(page) != before
    assert page.locator(".found").first.inner_text() != found


def test_keyboard(page, address):
    ready(page, address)
    page.locator("canvas").first.focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_function("queryOf(state.panes[0]) === state.panes[0].answer.query")
    row, column = page.evaluate("[Math.floor(queryOf(state.panes[0]) / 14) + 1, queryOf(state.panes[0]) % 14 + 1]")
    page.keyboard.press("ArrowRight")
    answers(page, row, column + 1)
    page.keyboard.press("ArrowUp")
    answers(page, row - 1, column + 1)
    page.keyboard.press("h")
    assert page.input_value("#head") == "0"
    page.keyboard.press("Shift+H")
    assert page.input_value("#head") == "-1"
    layer = page.input_value("#layer")
    page.keyboard.press("l")
    assert page.input_value("#layer") != layer
    page.keyboard.press("r")
    assert page.is_checked("#reference")
    page.keyboard.press("-")
    page.wait_for_function("state.scale < 1")


def test_images_are_opened_and_what_is_none_is_told(page, address):
    ready(page, address)
    good = {"name": "second.jpg", "mimeType": "image/jpeg", "buffer": photo(500, 300)}
    page.set_input_files("#file", good)
    page.wait_for_function("document.getElementById('status').textContent === 'second.jpg'")
    assert "second.jpg" in page.locator("#image").inner_text()
    page.set_input_files("#file", {"name": "notes.png", "mimeType": "image/png", "buffer": b"only text"})
    page.wait_for_function("document.getElementById('status').className === 'bad'")
    assert "notes.png: not a readable image" in page.locator("#status").inner_text()
    click(page, 0.5, 0.5)  # the image before is still there
    assert "of the attention" in page.locator(".answer").first.inner_text()
    tiny = {"name": "dot.png", "mimeType": "image/png", "buffer": photo(1, 1, "PNG")}
    page.set_input_files("#file", tiny)
    page.wait_for_function("document.getElementById('status').textContent === 'dot.png'")
    page.wait_for_function("state.panes.every((pane) => pane.answer)")


def test_a_dropped_image(page, address):
    ready(page, address)
    page.evaluate(
        """(bytes) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "dropped.jpg", { type: "image/jpeg" }));
            document.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",
        list(photo(50, 60)),
    )
    page.wait_for_function("document.getElementById('status').textContent === 'dropped.jpg'")


def test_twenty_clicks_a_second(page, address):
    ready(page, address)
    for i in range(40):
        click(page, 0.2 + 0.015 * i, 0.3 + 0.3 * (i % 2))
        page.wait_for_timeout(20)
    page.wait_for_function("state.panes.every((pane) => pane.answer && pane.answer.query === queryOf(pane))")
    click(page, 0.3, 0.3)
    page.wait_for_function("state.panes.every((pane) => pane.answer && pane.answer.query === queryOf(pane))")


def test_one_model_alone(page, address):
    ready(page, address)
    page.select_option("#compare", index=0)
    page.wait_for_function("state.panes.length === 1 && state.panes[0].answer")
    assert page.locator("canvas").count() == 1


def test_download(page, address, tmp_path):
    ready(page, address)
    with page.expect_download() as waiting:
        page.click("#download")
    waiting.value.save_as(tmp_path / "figure.png")
    assert waiting.value.suggested_filename.startswith("first_stages-2")
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.width == 2020
        assert len(picture.convert("RGB").resize((200, 100)).getcolors(20_000)) > 500


def test_a_phone(browser, address):
    page = browser.new_page(viewport={"width": 360, "height": 740}, has_touch=True, bypass_csp=True)
    ready(page, address)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    box = page.locator("canvas").first.bounding_box()
    page.touchscreen.tap(box["x"] + 0.3 * box["width"], box["y"] + 0.6 * box["height"])
    page.wait_for_function(
        "Math.abs(state.point[0] - 0.6) < 0.1 && state.panes[0].answer.query === queryOf(state.panes[0])"
    )
    page.close()


def test_the_page_as_one_file(page, small_model, tmp_path):
    target = tmp_path / "page.html"
    picture = tmp_path / "photo.jpg"
    picture.write_bytes(photo(224, 224))
    write_page(target, [(str(picture), picture)] * 2, [str(small_model), "dat_nano.cifar10"], "cpu")
    page.context.set_offline(True)
    ready(page, target.as_uri())
    click(page, 0.4, 0.4)
    page.wait_for_function("state.panes.every((pane) => pane.answer && pane.answer.query === queryOf(pane))")
    assert "of the attention" in page.locator(".answer").first.inner_text()
    before = pixels(page)
    page.locator("#scale").fill("0.25")
    page.wait_for_function("state.panes.every((pane) => pane.scale === 0.25)")
    assert pixels(page) != before
    page.wait_for_function("document.querySelector('.answer').textContent.includes('full offsets only')")
    assert page.locator("#open").is_hidden()
    with page.expect_download() as waiting:
        page.click("#download")
    assert waiting.value.suggested_filename.endswith(".png")


def test_without_a_server_the_page_says_so(page, small_model):
    session = Session([str(small_model)], "cpu")
    session.open(photo(24, 32), "first.jpg")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(application(session), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        ready(page, f"http://127.0.0.1:{listening.getsockname()[1]}/")
        server.force_exit = server.should_exit = True
        thread.join(10)
    time.sleep(0.1)
    told = page.evaluate("ask('api/known').then(() => 'answered', (error) => error.message)")
    assert "the server does not answer" in told
