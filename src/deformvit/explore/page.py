"""The page as one file: all that is shown of given images is inside, no server and no other file is needed."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from deformvit.errors import UserError
from deformvit.explore import still
from deformvit.explore.look import Look, look
from deformvit.explore.scales import Scales, found, scales
from deformvit.explore.view import Json, key_places, moved, picture, view
from deformvit.inference import Predictor, load, to_image
from deformvit.models.files import short_name
from deformvit.models.trace import LayerRecord
from deformvit.storage import write_atomically

STATIC = Path(__file__).parent / "static"
SCRIPTS = ("source.js", "paint.js", "address.js", "page.js")
SCALES = tuple(i / 8 for i in range(9))
"""Shares of the offsets at which a file knows points and prediction; a server computes any."""
BUDGET = 8_000_000
"""Attention weights that are stored for a layer; of larger layers only every n-th query along both axes."""


def document(data: Json | None, figures: str = "") -> str:
    """The page's HTML.

    Args:
        data: of the images inside; None for a page that asks the server it came from.
        figures: HTML that readers without scripts see.
    """
    html, css, *scripts = ((STATIC / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", *SCRIPTS))
    # In a script, "</" would end it and "<!--" change how it is read, wherever they stand.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    parts = {"/*CSS*/": css, "<!--FIGURES-->": figures, "/*DATA*/": text, "/*JS*/": "\n".join(scripts)}
    return re.sub("|".join(map(re.escape, parts)), lambda found: parts[found[0]], html)


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
    names = short_names(models)
    images: list[Json] = []
    figures: list[str] = []
    failed: list[str] = []
    for name, source in inputs:
        try:
            image = to_image(source, name)
        except UserError as error:
            failed.append(str(error))
            continue
        views = []
        for model, predictor in zip(names, predictors, strict=True):
            at = _passes(predictor, image, threshold, size)
            looks = scales(at, 1.0)
            picture_id = f"picture{len(figures)}"
            views.append({**_stored(looks, at), "picture": f"#{picture_id}"})
            jpeg = picture(looks.full)
            figures.append(still.figure(looks, _data_url(jpeg), picture_id, f"{Path(name).name}, {model}", show))
        images.append({"name": Path(name).name, "views": views})
    if not images:
        raise UserError("; ".join(failed))
    data = {"models": names, "images": images, "show": list(show or still.SHOW)}
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, lambda path: path.write_text(document(data, "".join(figures)), encoding="utf-8"))
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


def _passes(
    predictor: Predictor[Any], image: Image.Image, threshold: float, size: tuple[int, int] | None
) -> Callable[[float], Look]:
    """The pass of an image at a scale of the offsets."""
    top = len(predictor.classes) or 1
    return lambda scale: look(predictor, image, threshold=threshold, size=size, scale=scale, top=top)


def _stored(looks: Scales, at: Callable[[float], Look]) -> Json:
    """A view with attention, points and predictions at all scales that a file knows."""
    seen = looks.full
    data = view(looks)
    for told, layer in zip(data["layers"], seen.trace.layers, strict=True):
        # Local layers of a model that has deformable ones would make the file many times larger.
        shown = layer.deformed is not None or not seen.trace.deformable
        told["attention"] = _attention(layer, seen) if shown else None
    data["scaled"] = []
    for scale in SCALES if seen.trace.deformable else ():
        other = replace(looks, shown={0.0: looks.none, 1.0: seen}.get(scale) or at(scale))
        data["scaled"].append({"scale": scale, "found": found(other), "deformed": moved(other.shown)})
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
        "shared": key_places(first, layer, seen.hw) if layer.kind == "reduction" else None,
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
