"""What a page in one file shows of an image without any script: a drawing, the predictions and a sentence."""

from __future__ import annotations

import html
from collections.abc import Sequence

from deformvit.explore import view as views
from deformvit.explore.look import Look
from deformvit.explore.scales import Scales, found, verdict
from deformvit.models.trace import LayerRecord

COLOURS = ("#ff4d6d", "#4cc9f0", "#ffd166", "#80ed99", "#c77dff", "#ff9f1c")
"""Of offset groups, as in paint.js."""
FRAME = 0.1
"""Width of the frame around the image, in sides of it, as in paint.js."""
DRAWN = 60
"""Keys of a query that are drawn, the strongest, as in paint.js."""
SHOW = ("reference", "arrows", "deformed", "attention")
"""What is shown unless something else is asked for."""


def figure(looks: Scales, picture: str, picture_id: str, title: str, show: Sequence[str] = ()) -> str:
    """HTML of one image.

    Args:
        looks: the image through the model.
        picture: the image that was seen, as a URL.
        picture_id: identifies the picture's element for the page's script.
        title: names of the image and the model.
        show: as :func:`deformvit.explore.page.write_page`.
    """
    height, width = looks.full.hw
    start = views.first_layer(looks.full.trace)
    layer = None if start is None else looks.full.trace.layers[start]
    points = "" if layer is None else _points(layer, looks.full, show or SHOW)
    caption = html.escape(title if layer is None else f"{title}: {layer.label}, {layer.kind}")
    if layer is not None and layer.deformed is not None and (shift := round(layer.shift, 2)):
        caption += f" <small>grid {shift} pixels up and left: embeddings overlap</small>"
    box = f"{-FRAME * width:.4g} {-FRAME * height:.4g} {(1 + 2 * FRAME) * width:.4g} {(1 + 2 * FRAME) * height:.4g}"
    return (
        f'<figure><figcaption>{caption}</figcaption><svg viewBox="{box}" role="img">'
        f'<image id="{picture_id}" href="{picture}" width="{width}" height="{height}" preserveAspectRatio="none"/>'
        f"{points}</svg>{_predictions(looks)}</figure>"
    )


def _points(layer: LayerRecord, seen: Look, show: Sequence[str]) -> str:
    """Points of every group, and what the query in the middle attends to."""
    unit = max(seen.hw) / 100
    told = views.described(layer, seen.hw)
    reference, deformed = told["reference"] or [], told["deformed"] or []
    drawn = [f'<g stroke="#111" stroke-width="{unit / 6:.3g}">']
    for group, points in enumerate(deformed if "arrows" in show else []):
        lines = "".join(f"M{x} {y}L{to_x} {to_y}" for (y, x), (to_y, to_x) in zip(reference, points, strict=True))
        drawn.append(f'<path d="{lines}" stroke="{_colour(group)}" stroke-width="{unit / 2:.3g}"/>')
    if "reference" in show:
        drawn += [_circle(point, 0.7 * unit, "#fff") for point in reference]
    for group, points in enumerate(deformed if "deformed" in show else []):
        drawn += [_circle(point, unit, _colour(group)) for point in points]
    if "attention" in show:
        drawn.append(_attention(layer, seen, unit))
    return "".join([*drawn, "</g>"])


def _attention(layer: LayerRecord, seen: Look, unit: float) -> str:
    """Keys of the query in the middle, all heads together, their area is attention; and a star at the query."""
    answer = views.answer(layer, layer.query_at((seen.hw[0] / 2, seen.hw[1] / 2), seen.hw), seen.hw)
    keys = []
    for number, places in enumerate(answer["keys"]):
        heads = [weights for weights, its in zip(answer["weights"], answer["set"], strict=True) if its == number]
        keys += [(sum(weights), place, number) for *weights, place in zip(*heads, places, strict=True)]
    keys = sorted(keys)[-DRAWN:]
    most = max(keys[-1][0], 1e-12)
    largest = 100 * unit / max(3.2 * len(keys) ** 0.5, 18)
    circles = [_circle(place, largest * (weight / most) ** 0.5, _colour(number)) for weight, place, number in keys]
    y, x = answer["at"]
    star = f'<text x="{x}" y="{y}" font-size="{9 * unit:.3g}" fill="#fff" text-anchor="middle" dy="0.35em">★</text>'
    return f'<g fill-opacity="0.85">{"".join(circles)}</g>{star}'


def _predictions(looks: Scales) -> str:
    """A table of the predictions without and with offsets, and what the difference is."""
    rows = found(looks)
    if not rows:
        return ""
    deformed = bool(looks.full.trace.deformable)
    head = "<th>regular grid</th><th>deformed</th>" if deformed else "<th>prediction</th>"
    body = "".join(
        f"<tr><th>{html.escape(row['name'])}</th>"
        + "".join(f"<td>{html.escape(text)}</td>" for text in (row["texts"][::2] if deformed else row["texts"][:1]))
        + "</tr>"
        for row in rows
    )
    return f"<p>{html.escape(verdict(looks))}</p><table><tr><th></th>{head}</tr>{body}</table>"


def _circle(point: Sequence[float], radius: float, colour: str) -> str:
    return f'<circle cx="{point[1]}" cy="{point[0]}" r="{radius:.3g}" fill="{colour}"/>'


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]
