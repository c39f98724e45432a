"""What the page asks for, and what users drop on it."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
import time

import numpy as np
import pytest
import torch
from pictures_made import photo
from PIL import Image
from starlette.testclient import TestClient

from deformvit import load, record
from deformvit.explore import look
from deformvit.explore.page import document, write_page
from deformvit.explore.server import IMAGES, Session, application
from deformvit.inference import to_image
from deformvit.models.trace import scale_offsets


@pytest.fixture(scope="module")
def session(small_model):
    return Session([str(small_model)], "cpu")


@pytest.fixture
def client(session):
    return TestClient(application(session, ["testserver"]))


def opened(client, content, name="photo.jpg"):
    return client.post("/api/image", params={"name": name}, content=content, headers={"X-Deformvit": "1"})


def test_a_view_says_what_the_model_does(client, small_model):
    content = photo(300, 400)
    number = opened(client, content).json()["id"]
    view = client.get("/api/view", params={"image": number, "model": 0}).json()
    predictor = load(small_model, device="cpu")
    model, info = predictor.model, predictor.description
    x = predictor.transform(to_image(content))[None]
    with torch.inference_mode(), record(model) as trace:
        chances = model(x).softmax(-1)[0]
    best = int(chances.argmax())
    assert view["found"][0]["name"] == info.classes[best]
    assert view["found"][0]["values"][2] == pytest.approx(float(chances[best]), abs=1e-3)
    assert [layer["name"] for layer in view["layers"]] == [layer.name for layer in trace.layers]
    kinds = [layer["kind"] for layer in view["layers"]]
    assert kinds == ["window", "shifted"] * 2 + ["window", "deformable"] * 2
    for told, layer in zip(view["layers"], trace.layers, strict=True):
        if layer.deformed is not None:
            expected = layer.pixels(layer.deformed[0], (224, 224)).flatten(1, 2)
            np.testing.assert_allclose(told["deformed"], expected.numpy(), atol=0.05)


def test_an_answer_is_the_attention_of_the_query(client, small_model):
    content = photo(240, 320)
    number = opened(client, content).json()["id"]
    predictor = load(small_model, device="cpu")
    with torch.inference_mode(), record(predictor.model) as trace:
        predictor.model(predictor.transform(to_image(content))[None])
    where = 5  # stage 3's deformable layer
    layer = trace.layers[where]
    answer = client.get("/api/attention", params={"image": number, "model": 0, "layer": where, "query": 17}).json()
    found = layer.attend([17])
    np.testing.assert_allclose(answer["weights"], found.weights[:, 0].numpy(), atol=2e-3)
    np.testing.assert_allclose(answer["bias"], found.bias[:, 0].numpy(), atol=1e-3)
    assert answer["set"] == [0, 0, 1, 1]
    assert len(answer["keys"]) == 2
    assert answer["at"] == [16 * (17 // 14) + 8, 16 * (17 % 14) + 8]


def test_scaled_offsets_move_points_and_prediction(client):
    number = opened(client, photo(224, 224)).json()["id"]
    views = [
        client.get("/api/view", params={"image": number, "model": 0, "scale": scale}).json() for scale in (0, 0.5, 1)
    ]
    still, half, full = (np.array(view["layers"][5]["deformed"]) for view in views)
    reference = np.array(views[0]["layers"][5]["reference"])
    np.testing.assert_allclose(still, np.broadcast_to(reference, still.shape), atol=0.02)
    np.testing.assert_allclose(half - reference, (full - reference) / 2, atol=0.02)  # the first layer's are linear
    assert np.abs(full - reference).max() > 0.5
    assert views[0]["found"] != views[2]["found"]


def test_predictions_without_and_with_offsets_are_told_at_any_scale(client, small_model):
    content = photo(240, 320)
    number = opened(client, content).json()["id"]
    predictor = load(small_model, device="cpu")
    expected = {
        scale: {f.name: f.value for f in look(predictor, content, scale=scale, top=6).result.findings()}
        for scale in (0, 0.25, 1)
    }
    at = {
        scale: client.get("/api/view", params={"image": number, "model": 0, "scale": scale}).json()
        for scale in (0, 0.25, 1)
    }
    for scale, view in at.items():
        assert [row["name"] for row in view["found"]] == [row["name"] for row in at[1]["found"]]
        for row in view["found"]:
            named = [expected[of][row["name"]] for of in (0, scale, 1)]
            assert row["values"] == pytest.approx(named, abs=1e-3)
            assert row["texts"] == [f"{100 * value:.1f} %" for value in named]
        assert view["verdict"] == at[1]["verdict"]


def test_an_image_keeps_its_id_when_the_server_is_started_anew(small_model):
    content = photo(30, 40)
    sessions = [Session([str(small_model)], "cpu") for _ in range(2)]
    ids = [session.open(content, "a.jpg") for session in (*sessions, sessions[0])]
    assert len(set(ids)) == 1
    assert len(sessions[0].images()) == 1
    assert sessions[0].open(photo(40, 30), "b.jpg") != ids[0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_damage_is_told_in_words(client, kind):
    whole = photo(60, 60, kind)
    for content in (whole[:4], whole[:40], whole[: len(whole) // 2], whole[:12] + bytes(200)):
        reply = opened(client, content, "broken")
        if reply.status_code != 200:  # half of a GIF or PPM is an image to some
            assert re.fullmatch(r"broken: not a readable image \([^<>]+\)", reply.json()["error"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"I am a text file", "not a readable image"),
        (b"", "not a readable image"),
        (photo(60, 60)[:400], "not a readable image"),
    ],
)
def test_what_is_no_image_is_told(client, content, message):
    reply = opened(client, content, "notes.png")
    assert reply.status_code == 422
    assert "notes.png" in reply.json()["error"]
    assert message in reply.json()["error"]


def test_one_pixel(client):
    number = opened(client, photo(1, 1, "PNG")).json()["id"]
    assert client.get("/api/view", params={"image": number, "model": 0}).json()["height"] == 224
    picture = Image.open(io.BytesIO(client.get("/api/picture", params={"image": number, "model": 0}).content))
    assert picture.size == (224, 224)


@pytest.mark.parametrize(("height", "width"), [(1, 9000), (9000, 2)])
def test_a_line_of_pixels(small_model, height, width):
    view = load(small_model, device="cpu").view(to_image(photo(height, width, "PNG")))
    assert view.shape == (3, 224, 224)
    colours = view.mean((1, 2))
    assert abs(colours[1 if width > height else 0] - 0.5) < 0.02  # the middle of what runs along the line


def test_fifty_megapixels(client):
    content = photo(6200, 8200)
    started = time.monotonic()
    number = opened(client, content).json()["id"]
    assert client.get("/api/view", params={"image": number, "model": 0}).status_code == 200
    assert client.get("/api/picture", params={"image": number, "model": 0}).status_code == 200
    assert time.monotonic() - started < 30


def test_a_photo_is_turned_upright(client):
    image = Image.open(io.BytesIO(photo(40, 80)))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was held upright: stored rows are columns
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    number = opened(client, buffer.getvalue()).json()["id"]
    turned = client.get("/api/picture", params={"image": number, "model": 0}).content
    number = opened(client, buffer.getvalue().replace(b"Exif\0\0", b"Nope\0\0", 1)).json()["id"]
    stored = client.get("/api/picture", params={"image": number, "model": 0}).content
    top, left = (np.asarray(Image.open(io.BytesIO(data))).astype(int) for data in (turned, stored))
    assert np.abs(top - np.rot90(left, -1)).mean() < 12
    assert np.abs(top - left).mean() > 30


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/api/view?image=99999&model=0", "image 99999 is not open any more"),
        ("/api/view?image={}&model=cat", "model must be a number, got 'cat'"),
        ("/api/view?image={}&model=7", "there is no model 7; there are 1"),
        ("/api/view?image={}&model=0&scale=3", "scale must be from 0 to 1, got 3.0"),
        ("/api/view?image={}&model=0&scale=nan", "scale must be from 0 to 1, got nan"),
        ("/api/attention?image={}&model=0&layer=99&query=0", "there is no layer 99; there are 8"),
        ("/api/attention?image={}&model=0&layer=0&query=-1", "there is no query -1; there are 3136"),
    ],
)
def test_wrong_questions_are_told(client, path, message):
    number = opened(client, photo(20, 30)).json()["id"]
    reply = client.get(path.format(number))
    assert reply.status_code == 422
    assert message in reply.json()["error"]


def test_other_pages_are_kept_out(session):
    client = TestClient(application(session, ["127.0.0.1"]), base_url="http://evil.example")
    assert client.get("/api/known").status_code == 400  # a name that was made to lead here
    client = TestClient(application(session, ["testserver"]))
    assert client.post("/api/image", content=photo(10, 10)).status_code == 422  # what a form can send


def test_nothing_comes_from_another_host(client):
    page = client.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", page.text)


def test_old_images_go(client):
    numbers = [opened(client, photo(9, 9 + i)).json()["id"] for i in range(IMAGES + 1)]
    assert client.get("/api/view", params={"image": numbers[0], "model": 0}).status_code == 422
    assert client.get("/api/view", params={"image": numbers[-1], "model": 0}).status_code == 200


def test_memory_is_bounded(small_model, monkeypatch):
    from deformvit.explore import server

    monkeypatch.setattr(server, "MEMORY", 1)
    session = Session([str(small_model)], "cpu")
    number = session.open(photo(30, 40), "a.jpg")
    for i in range(8):
        session.look(number, 0, i / 10)
    assert [key[2] for key in session._looks] == [0.4, 0.5, 0.6, 0.7]


def test_twenty_clicks_a_second(client):
    """From several threads, while the offset scale moves."""
    number = opened(client, photo(224, 224)).json()["id"]
    answered, failed = [], []

    def click(query):
        scale = (query % 3) / 2
        where = {"image": number, "model": 0, "layer": 5, "query": query, "scale": scale}
        reply = client.get("/api/attention", params=where)
        if reply.status_code == 200:
            answered.append(reply.json()["query"])
        else:
            failed.append(reply.text)

    threads = [threading.Thread(target=click, args=(query,)) for query in range(40)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    seconds = time.monotonic() - started
    assert failed == []
    assert sorted(answered) == list(range(40))
    assert 40 / seconds > 10  # 148 on two cores under a load of 6


def test_a_model_is_left_as_it_was(small_model):
    predictor = load(small_model, device="cpu")
    model, x = predictor.model, predictor.transform(to_image(photo(50, 70)))[None]
    with torch.inference_mode():
        before = model(x)
        look(predictor, photo(50, 70), scale=0.3)
        assert torch.equal(model(x), before)
        with scale_offsets(model, 1.0):
            assert torch.equal(model(x), before)
        with scale_offsets(model, 0.0):
            assert not torch.equal(model(x), before)
    assert not any(module._forward_hooks for module in model.modules())


# ---- the page as a file ----


def stored(html):
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', html, re.DOTALL)[1])


def test_a_file_holds_what_the_server_says(client, small_model, tmp_path):
    content = photo(224, 224)
    number = opened(client, content).json()["id"]
    (tmp_path / "photo.jpg").write_bytes(content)
    broken = tmp_path / "broken.png"
    broken.write_text("text")
    inputs = [(str(path), path) for path in (tmp_path / "photo.jpg", broken)]
    failed = write_page(tmp_path / "page.html", inputs, [str(small_model)], "cpu")
    assert len(failed) == 1
    assert "broken.png" in failed[0]
    html = (tmp_path / "page.html").read_text()
    assert "<b>dog" not in html
    assert "&lt;b&gt;dog&lt;/b&gt;" in html  # in the table that is seen without scripts
    data = stored(html)
    assert html.count(f'id="{data["images"][0]["views"][0]["picture"][1:]}" href="data:image/jpeg;base64,') == 1
    assert data["images"][0]["name"] == "photo.jpg"
    view = data["images"][0]["views"][0]
    served = client.get("/api/view", params={"image": number, "model": 0}).json()
    assert view["found"] == served["found"]
    assert view["verdict"] == served["verdict"] != ""
    assert [layer["deformed"] for layer in view["layers"]] == [layer["deformed"] for layer in served["layers"]]
    where = {"image": number, "model": 0, "layer": 5, "query": 100}
    answer = client.get("/api/attention", params=where).json()
    attention = view["layers"][5]["attention"]
    shape = (196, 4, attention["number"])
    weights = np.frombuffer(base64.b64decode(attention["weights"]), np.uint8).reshape(shape)
    highest = np.frombuffer(base64.b64decode(attention["highest"]), "<f4").reshape(196, 4, 1)
    np.testing.assert_allclose(highest[100] * (weights[100] / 255.0) ** 2, answer["weights"], atol=2e-3)
    low, high = attention["bias_range"]
    bias = np.frombuffer(base64.b64decode(attention["bias"]), np.uint8).reshape(shape)
    np.testing.assert_allclose(low + (high - low) * (bias[100] / 255.0), answer["bias"], atol=(high - low) / 200)
    assert [entry["scale"] for entry in view["scaled"]] == [i / 8 for i in range(9)]
    assert view["scaled"][0]["found"] != view["scaled"][8]["found"]


def test_names_cannot_break_out_of_the_page():
    html = document({"models": ["</script><script>alert(1)</script>"], "images": []})
    assert html.count("<script") == document(None).count("<script")
    assert stored(html)["models"] == ["</script><script>alert(1)</script>"]
