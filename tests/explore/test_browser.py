"""The page as a person uses it, in headless Chromium: load, click, move, compare, download."""

from __future__ import annotations

import math
import os
import shutil
import socket
import threading
import time
import urllib.request

import numpy as np
import pytest
import uvicorn
from pictures_made import photo
from PIL import Image

from deformvit import load
from deformvit.explore import look
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
    page.wait_for_selector(".found td")
    page.wait_for_function("state.panes.every((pane) => pane.answer)")


def click(page, down, right):
    """Click on the first canvas, at shares of it; the row and column, from 1, of the query there.

    The chosen layer has a map of 14 x 14 cells, each 16 pixels wide.
    """
    box = page.locator("canvas").first.bounding_box()
    page.mouse.click(box["x"] + right * box["width"], box["y"] + down * box["height"])
    frame = page.evaluate("FRAME")
    row, column = (math.floor(14 * (share * (1 + 2 * frame) - frame)) + 1 for share in (down, right))
    return row, column


def answers(page, row, column):
    page.wait_for_function(
        f"document.querySelector('.answer').textContent.startsWith('★ at row {row}, column {column} ')"
    )


def pixels(page, pane=0):
    return page.evaluate(f"document.querySelectorAll('canvas')[{pane}].toDataURL()")


POINTS = "(({ reference, deformed }) => [reference, deformed[0]])(layerOf(state.panes[0]))"
"""Reference points and deformed points of the first group, (y, x) in pixels of what the network saw."""


def drawn_colours(page, places):
    """Colours (R, G, B) on the first canvas at places (y, x), in pixels of what the network saw."""
    return page.evaluate(
        """(places) => {
            const [pane] = state.panes, margin = FRAME, context = pane.canvas.getContext("2d");
            const unit = pane.canvas.width / (pane.view.width * (1 + 2 * margin));
            return places.map(([y, x]) => Array.from(context.getImageData(
                Math.round((x + margin * pane.view.width) * unit),
                Math.round((y + margin * pane.view.height) * unit), 1, 1).data.slice(0, 3)));
        }""",
        places,
    )


def test_click_a_query_and_see_its_keys(page, address):
    ready(page, address)
    assert page.locator(".pane").count() == 2  # two models are compared at once
    before = pixels(page), pixels(page, 1)
    row, column = click(page, 0.2, 0.7)
    answers(page, row, column)
    assert "of the attention" in page.locator(".answer").first.inner_text()
    assert pixels(page) != before[0]
    assert pixels(page, 1) != before[1]  # the same place in the other model
    star = [16 * row - 8, 16 * column - 8]
    assert drawn_colours(page, [star]) == [[255, 255, 255]]


def test_what_is_drawn_is_told(page, address):
    ready(page, address)
    first, second = page.locator(".groups").all_inner_texts()
    assert "group 1" in first
    assert "group 2" in first
    assert "up and left" not in first  # its patches do not overlap
    assert "grid 3.5 pixels up and left" in second  # strides of 8 over overlapping kernels
    assert "of its 392 keys" in page.locator(".answer").first.inner_text()
    assert "The 60 strongest are drawn." in page.locator(".answer").first.inner_text()


def test_its_own_policy_lets_the_page_work(browser, address):
    page = browser.new_page()
    complaints = []
    page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else 0)
    page.goto(address)
    page.wait_for_selector(".found td")
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
        lambda: page.uncheck("#reference"),
        lambda: page.select_option("#group", index=1),
        lambda: page.check("#bias"),
        lambda: page.select_option("#layer", index=0),
        lambda: page.uncheck("#attention"),
    ):
        action()
        page.wait_for_timeout(200)
        seen.append(pixels(page))
    assert [i for i in range(1, len(seen)) if seen[i] in seen[:i]] == []
    assert page.locator("#group").is_disabled()  # a window layer has none


def test_the_offset_scale_moves_points_and_prediction(page, address):
    ready(page, address)
    page.uncheck("#attention")
    before = pixels(page)
    assert page.locator("#scale-text").inner_text() == "s = 2.00 of 2"
    page.locator("#scale").fill("0.5")
    page.wait_for_function("state.panes.every((pane) => pane.scale === 0.5)")
    assert page.locator("#scale-text").inner_text() == "s = 1.00 of 2"
    assert pixels(page) != before
    columns = page.locator(".found").first.locator("tr").nth(1).locator("td:not(.bars)").all_inner_texts()
    assert len(set(columns)) == 3  # without offsets, with half of them, with all


def test_offsets_are_off_at_zero(page, address):
    """The drawn points lie on the reference grid, and there are no arrows."""
    ready(page, address)
    page.uncheck("#attention")
    page.select_option("#group", index=1)
    red = [0xFF, 0x4D, 0x6D]  # of group 1
    for scale in (1, 0):
        page.locator("#scale").fill(str(scale))
        page.wait_for_function(f"state.panes.every((pane) => pane.scale === {scale})")
        reference, deformed = page.evaluate(POINTS)
        assert len(reference) == len(deformed) == 196
        off_grid = np.abs(np.subtract(deformed, reference)).max()
        assert off_grid < 0.02 if scale == 0 else off_grid > 0.5  # pixels
        with_arrows = pixels(page)
        page.uncheck("#arrows")
        assert (pixels(page) != with_arrows) == bool(scale)
        colours = drawn_colours(page, deformed)
        assert sum(colour == red for colour in colours) >= 180  # the star covers some
        page.check("#arrows")


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
    assert not page.is_checked("#reference")
    page.keyboard.press("-")
    page.wait_for_function("state.scale < 1")


def test_images_are_opened_and_what_is_none_is_told(page, address):
    ready(page, address)
    name = "<img src=x onerror=broken()>.jpg"  # shown as it is: an element would call a missing function
    page.set_input_files("#file", {"name": name, "mimeType": "image/jpeg", "buffer": photo(500, 300)})
    page.wait_for_function("(name) => document.getElementById('status').textContent === name", arg=name)
    assert page.locator("#image option").all_inner_texts()[-1] == name
    assert page.evaluate("state.panes[0].view.height") == 224
    page.set_input_files("#file", {"name": "notes.png", "mimeType": "image/png", "buffer": b"only text"})
    page.wait_for_function("document.getElementById('status').className === 'bad'")
    assert "notes.png: not a readable image" in page.locator("#status").inner_text()
    for place in (0.2, 0.8):  # the image before is still there
        answers(page, *click(page, place, place))
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


CLICKS = """async ([count, pause]) => {
    // Clicks at a steady rate; which of them the page drew answers of, and how it ended.
    const [pane] = state.panes, drawn = new Set(), started = performance.now();
    const paintOnly = draw;
    draw = () => { paintOnly(); if (pane.answer) drawn.add(pane.answer.query); };
    const wait = (ms) => new Promise((done) => setTimeout(done, ms));
    const box = pane.canvas.getBoundingClientRect();
    let clicks = 0;
    for (; clicks < count; clicks++) {
        await wait(started + clicks * pause - performance.now());
        const place = { clientX: box.left + (0.1 + 0.8 * (clicks % 7) / 6) * box.width,
                        clientY: box.top + (0.1 + 0.8 * Math.floor(clicks / 7) / 6) * box.height };
        pane.canvas.setPointerCapture = () => {};  // there is no pointer behind these clicks
        pane.canvas.dispatchEvent(new PointerEvent("pointerdown", place));
    }
    const seconds = (performance.now() - started) / 1000, answered = drawn.size, ended = performance.now();
    while (!(pane.answer && pane.answer.query === queryOf(pane))) await wait(5);
    draw = paintOnly;
    return { clicks: clicks / seconds, answers: answered / seconds, lag: performance.now() - ended };
}"""


def test_twenty_clicks_a_second(page, address):
    ready(page, address)
    reached = page.evaluate(CLICKS, [40, 50])
    assert reached["clicks"] > 15  # the page does not hold up its own events
    assert reached["answers"] > 4  # drawn meanwhile, for two models; 10 on two cores under a load of 6
    assert reached["lag"] < 1500  # milliseconds from the last click to its answer


def test_clicks_that_come_faster_than_answers_are_left_out(page, address):
    ready(page, address)
    page.evaluate(
        """() => {
            const ask = source.answer;
            window.asked = 0;
            source.answer = async (...words) => {
                window.asked += 1;
                await new Promise((done) => setTimeout(done, 100));
                return ask(...words);
            };
        }"""
    )
    reached = page.evaluate(CLICKS, [40, 50])
    assert 4 <= page.evaluate("window.asked") <= 2 * (2000 / 200 + 3)  # two models, one after the other
    assert reached["lag"] < 2000  # one answer may be under way when the last click comes


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
    assert waiting.value.suggested_filename == "first_stage-3-block-2.png"
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.width == 2020
        assert len(picture.convert("RGB").resize((200, 100)).getcolors(20_000)) > 500


def test_the_picture_stays_where_it_is_when_offsets_and_layers_change(page, address):
    ready(page, address)
    for switch in ("reference", "arrows", "deformed", "attention"):
        page.uncheck(f"#{switch}")
    seen = []
    for scale in (1, 0.5, 0):
        page.locator("#scale").fill(str(scale))
        page.wait_for_function(f"state.panes.every((pane) => pane.scale === {scale})")
        for layer in (0, 5, 7):
            page.select_option("#layer", index=layer)
            seen.append((page.locator("canvas").first.bounding_box(), pixels(page)))
    assert all(view == seen[0] for view in seen)


CUT_OFF = """() => {
    // Elements whose text is wider than they are, and menus that are narrower than the option they show.
    const told = "#layer, #layer-facts, .pane h2, .found th, .card *, #legend span, label";
    const cut = [...document.querySelectorAll(told)].filter((element) =>
        element.scrollWidth > element.clientWidth && getComputedStyle(element).display !== "inline");
    const context = document.createElement("canvas").getContext("2d"), arrow = 20;
    for (const id of ["layer", "head", "group"]) {
        const style = getComputedStyle($(id));
        context.font = style.font;
        const room = $(id).clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight) - arrow;
        for (const option of $(id).options) if (context.measureText(option.text).width > room) cut.push(option);
    }
    return cut.map((element) => element.outerHTML.slice(0, 80));
}"""


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (820, 1180), (390, 844), (360, 740)])
def test_nothing_is_cut_off(page, address, width, height):
    page.set_viewport_size({"width": width, "height": height})
    ready(page, address)
    assert "stage 3, block 2 · deformable" in page.locator("#layer option").all_inner_texts()
    assert page.evaluate(CUT_OFF) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_phone_shows_picture_layer_and_slider_together(browser, address):
    page = browser.new_page(viewport={"width": 390, "height": 844}, has_touch=True, bypass_csp=True)
    ready(page, address)
    for scrolled in (0, 150):
        page.evaluate(f"window.scrollTo(0, {scrolled})")
        boxes = {name: page.locator(name).first.bounding_box() for name in ("canvas", "#layer", "#scale")}
        assert all(box["y"] >= 0 and box["y"] + box["height"] <= 844 for box in boxes.values()), boxes
        assert boxes["canvas"]["y"] + boxes["canvas"]["height"] <= boxes["#layer"]["y"]  # nor do they cover it
    box = boxes["canvas"]
    page.touchscreen.tap(box["x"] + 0.3 * box["width"], box["y"] + 0.6 * box["height"])
    page.wait_for_function(
        "Math.abs(state.point[0] - 0.6) < 0.1 && state.panes[0].answer.query === queryOf(state.panes[0])"
    )
    page.close()


SHOWN = """() => ({
    image: state.image, scale: $("scale").value,
    layer: $("layer").value, head: $("head").value, group: $("group").value,
    query: state.panes.map((pane) => pane.answer.query), models: state.panes.map((pane) => pane.model),
    switches: SWITCHES.map((id) => $(id).checked),
})"""


def test_a_reload_shows_the_same(page, address):
    ready(page, address)
    page.set_input_files("#file", {"name": "mine.jpg", "mimeType": "image/jpeg", "buffer": photo(260, 260)})
    page.wait_for_function("document.getElementById('status').textContent === 'mine.jpg'")
    page.select_option("#compare", index=0)
    page.select_option("#layer", index=7)
    page.select_option("#head", index=2)
    page.uncheck("#arrows")
    page.check("#bias")
    page.locator("#scale").fill("0.35")
    page.wait_for_function("state.panes.every((pane) => pane.scale === 0.35 && pane.answer)")
    click(page, 0.3, 0.8)
    page.wait_for_function("queryOf(state.panes[0]) === state.panes[0].answer.query && location.hash.includes('y=0.')")
    page.wait_for_timeout(400)  # until the address is written
    before, drawn = page.evaluate(SHOWN), pixels(page)
    for again in (page.reload, lambda: page.goto(page.url + "&x=0.1")):  # a link to the same page is followed, too
        again()
        page.wait_for_selector(".found td")
        page.wait_for_function("state.panes.every((pane) => pane.answer && pane.scale === 0.35)")
        assert page.evaluate(SHOWN) == before
    assert page.locator("#image option:checked").inner_text() == "mine.jpg"
    assert pixels(page) == drawn


def test_an_address_whose_image_is_gone_says_so(page, address):
    ready(page, f"{address}#image=0123456789abcdef&layer=stage 4, block 2&head=999&s=cat&compare=nobody")
    told = page.locator("#status").inner_text()
    assert "not open here" in told
    assert "open it again" in told
    assert "The model nobody" in told
    assert page.locator("#image option:checked").inner_text() == "first.jpg"
    shown = page.evaluate(SHOWN)
    assert (shown["layer"], shown["head"], shown["scale"]) == ("stage 4, block 2", "-1", "1")


def test_predictions_without_and_with_offsets_stand_side_by_side(page, address, small_model):
    ready(page, address)
    predictor = load(small_model, device="cpu")
    expected = [look(predictor, photo(240, 320), scale=scale).result.findings()[0] for scale in (0, 1)]
    cards = page.locator(".pane").first.locator(".card")
    boxes = [cards.nth(i).bounding_box() for i in (0, 1)]
    assert boxes[0]["y"] == boxes[1]["y"]
    for i, finding in enumerate(expected):
        name, value = cards.nth(i).locator("b").inner_text(), cards.nth(i).locator("span").inner_text()
        assert (name, value.replace("\xa0", " ")) == (finding.name, finding.text)
    assert "Regular grid, s = 0" in cards.nth(0).inner_text()
    assert "Deformed, s = 2" in cards.nth(1).inner_text()
    assert page.locator(".verdict").first.inner_text().startswith("Deformation ")


def test_the_page_as_one_file(page, small_model, tmp_path):
    target = tmp_path / "page.html"
    picture = tmp_path / "photo.jpg"
    picture.write_bytes(photo(224, 224))
    write_page(target, [(str(picture), picture)] * 2, [str(small_model), "dat_nano.cifar10"], "cpu")
    page.context.set_offline(True)
    ready(page, target.as_uri())
    for place in (0.2, 0.8):
        row, column = click(page, place, place)
        answers(page, row, column)
        assert "of the attention" in page.locator(".answer").first.inner_text()
    before = pixels(page)
    reference, full = page.evaluate(POINTS)
    page.locator("#scale").fill("0.25")
    page.wait_for_function("state.panes.every((pane) => pane.scale === 0.25)")
    quarter = page.evaluate(POINTS)[1]  # of the first deformable layer, which sees the same features at any scale
    np.testing.assert_allclose(np.subtract(quarter, reference), np.subtract(full, reference) / 4, atol=0.02)
    assert pixels(page) != before
    page.wait_for_function("document.querySelector('.answer').textContent.includes('full deformation only')")
    assert page.locator("#open").is_hidden()
    page.wait_for_timeout(400)  # until the address is written
    before = page.evaluate("[state.point, state.scale, state.layer]")
    page.reload()
    page.wait_for_selector(".found td")
    page.wait_for_function("state.panes.every((pane) => pane.scale === 0.25)")
    np.testing.assert_allclose(page.evaluate("state.point"), before[0], atol=1e-4)
    assert page.evaluate("[state.scale, state.layer]") == before[1:]
    with page.expect_download() as waiting:
        page.click("#download")
    assert waiting.value.suggested_filename.endswith(".png")


def test_a_file_explains_itself_without_scripts(browser, small_model, tmp_path):
    target, picture = tmp_path / "page.html", tmp_path / "photo.jpg"
    picture.write_bytes(photo(224, 224))
    write_page(target, [(str(picture), picture)], [str(small_model)], "cpu", show=("reference", "arrows", "deformed"))
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(target.as_uri())
    seen = page.locator("body").inner_text()
    assert "What am I looking at?" in seen
    assert "photo.jpg, small.safetensors: stage 3, block 2, deformable" in seen.replace("small:", "small.safetensors:")
    predictor = load(small_model, device="cpu")
    for scale in (0, 1):
        finding = look(predictor, picture, scale=scale).result.findings()[0]
        assert finding.text in seen
    drawing = page.locator("#figures svg")
    assert drawing.bounding_box()["width"] > 300
    assert drawing.locator("circle").count() == 196 * 3  # the grid, and both groups
    assert page.locator("main").is_hidden()  # what would not work
    context.close()


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
