"""The page as one file: all that is shown of given images is inside, no server and no other file is needed."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from deformvit.errors import UserError
from deformvit.explore import view as views
from deformvit.explore.look import Look, look
from deformvit.explore.view import Json
from deformvit.inference import Predictor, load, to_image
from deformvit.models.files import short_name
from deformvit.models.trace import LayerRecord
from deformvit.storage import write_atomically

STATIC = Path(__file__).parent / "static"
SCALES = tuple(i / 8 for i in range(9))
"""Shares of the offsets at which a file knows points and prediction; a server computes any."""
BUDGET = 8_000_000
"""Attention weights that are stored for a layer; of larger layers only every n-th query along both axes."""


def document(data: Json | None) -> str:
    """The page's HTML: with the data of images inside, or (None) one that asks the server it came from."""
    html, css, js = ((STATIC / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js"))
    # In a script, "</" would end it and "<!--" change how it is read, wherever they stand.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return html.replace("/*CSS*/", css).replace("/*DATA*/", text).replace("/*JS*/", js)


def write_page(
    target: Path, inputs: list[tuple[str, Any]], models: list[str], device: str, *, threshold: float = 0.5,
    size: tuple[int, int] | None = None, show: Sequence[str] = (),
) -> list[str]:  # fmt: skip
    """Write the page with everything about some images.

    Args:
        target: the HTML file.
        inputs: names and files or decoded images.
        models: files or names of one model or several.
        device: to compute on.
        threshold: detectors: score from which objects count.
        size: classifiers: (H, W) that whole images are resized to.
        show: what is switched on when the page is opened: "reference", "arrows", "deformed", "attention", "bias"; by
            default as the served page.

    Returns:
        Messages about images that could not be read.

    Raises:
        UserError: none could be read.
    """
    predictors = [load(name, device=device) for name in models]
    images, failed = [], []
    for name, source in inputs:
        try:
            image = to_image(source, name)
        except UserError as error:
            failed.append(str(error))
            continue
        stored = [_stored(predictor, image, threshold, size) for predictor in predictors]
        images.append({"name": Path(name).name, "views": stored})
    if not images:
        raise UserError("; ".join(failed))
    data = {"models": short_names(models), "images": images, "show": list(show)}
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, lambda path: path.write_text(document(data), encoding="utf-8"))
    return failed


def short_names(models: list[str]) -> list[str]:
    """What models are called on the page, made different."""
    names: list[str] = []
    for model in models:
        name = short_name(model)
        while name in names:
            name += "'"
        names.append(name)
    return names


def _stored(predictor: Predictor[Any], image: Image.Image, threshold: float, size: tuple[int, int] | None) -> Json:
    seen = look(predictor, image, threshold=threshold, size=size)
    data = views.view(seen)
    data["picture"] = _data_url(views.picture(seen, predictor, image, size))
    for described, layer in zip(data["layers"], seen.trace.layers, strict=True):
        # Local layers of a model that has deformable ones would make the file many times larger.
        shown = layer.deformed is not None or not seen.trace.deformable
        described["attention"] = _attention(layer, seen) if shown else None
    data["scaled"] = []
    for scale in SCALES if seen.trace.deformable else ():
        other = seen if scale == 1 else look(predictor, image, threshold=threshold, size=size, scale=scale)
        data["scaled"].append({"scale": scale, "found": views.found(other), "deformed": views.moved(other)})
    return data


def _attention(layer: LayerRecord, seen: Look) -> Json:
    """What every query attends to, weights and bias in a byte each."""
    height, width = layer.feature_hw
    first = layer.attend([0])
    number = layer.num_heads * first.weights.shape[-1]
    every = 1
    while number * (-(-height // every)) * (-(-width // every)) > BUDGET:
        every += 1
    queries = [row * width + col for row in range(0, height, every) for col in range(0, width, every)]
    shared = layer.kind in ("deformable", "reduction")
    weights, highest, biases, keys = [], [], [], []
    for part in torch.tensor(queries).split(max(BUDGET // number, 1)):
        attended = layer.attend(part)
        peak = attended.weights.amax(-1, keepdim=True)
        # The square root: small weights keep their order in eight bits.
        weights.append((255 * (attended.weights / peak).sqrt()).round().byte().transpose(0, 1).cpu())
        highest.append(peak[..., 0].transpose(0, 1).float().cpu())
        if attended.bias is not None:
            biases.append(attended.bias.transpose(0, 1).cpu())
        if not shared:
            places = layer.index_pixels(
                attended.keys if layer.kind == "deformable_detr" else attended.keys[:1], seen.hw
            )
            keys.append(places.transpose(0, 1).round(decimals=1).cpu())
    stored: Json = {
        "every": every,
        "weights": _packed(torch.cat(weights)),
        "highest": _packed(torch.cat(highest)),
        "number": first.weights.shape[-1],
        "set": layer.key_sets,
        "shared": views.key_places(first, layer, seen.hw) if layer.kind == "reduction" else None,
    }
    if keys:
        stored["keys"] = _packed(torch.cat(keys).float())
    if biases:
        bias = torch.cat(biases)
        low, high = float(bias.min()), float(bias.max())
        stored["bias"] = _packed((255 * (bias - low) / max(high - low, 1e-12)).round().byte())
        stored["bias_range"] = [round(low, 4), round(high, 4)]
    return stored


def _data_url(jpeg: bytes) -> str:
    """A JPEG as text that a page can show."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def _packed(values: torch.Tensor) -> str:
    """Bytes, or little-endian 32-bit floats, as text."""
    array = values.contiguous().numpy()
    return base64.b64encode(array.astype("<f4" if array.dtype.kind == "f" else "u1").tobytes()).decode()
