"""The page in windows of all sizes, after a reload and as one file, in headless Chromium."""

from __future__ import annotations

import time

import numpy as np
import pytest
from browsing import POINTS, answers, click, pixels, ready, serving
from pictures_made import photo

from deformvit import load
from deformvit.explore import look
from deformvit.explore.page import write_page
from deformvit.explore.server import Session


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
    with serving(session) as where:
        ready(page, where)
    time.sleep(0.1)
    told = page.evaluate("ask('api/known').then(() => 'answered', (error) => error.message)")
    assert "the server does not answer" in told
