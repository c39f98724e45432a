"""A Sphinx extension that draws the gallery: every picture by the command printed above it."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

from deformvit_command import main

ENTRIES = (
    (
        "Deformed points (Fig. 2)",
        "Reference points are white, arrows are offsets, each column is an offset group.",
        "figure points photo",
        "cat_points.png",
    ),
    (
        "The most important keys (Fig. 5)",
        "Attention propagated through all deformable layers; the area of a circle is its score.",
        "figure keys photo",
        "cat_keys.png",
    ),
    (
        "One query (Fig. 7)",
        "The keys of highest attention of the query at the star, all heads together.",
        "figure query photo --point 0.4 0.5",
        "cat_query.png",
    ),
    (
        "One query, head by head",
        "The same for each head of the third deformable layer.",
        "figure query photo --point 0.4 0.5 --heads each --layers 3 --output heads",
        "heads/cat_query.png",
    ),
    (
        "Offset fields",
        "Hue is direction, strength is length. Points at the bound, and points that lie off the map, are counted.",
        "figure offsets photo",
        "cat_offsets.png",
    ),
    (
        "Another size",
        "No model has one input size: the same weights on the whole photo at 80 x 112 pixels.",
        "figure points photo --size 80 112 --layers 2 4 --output wide",
        "wide/cat_points.png",
    ),
)
PAGE = """# Gallery

Drawn by this site's build with the packaged weights, which see 32 x 32 pixels (CIFAR-10); {{doc}}`figures` says what
the kinds are.

<a href="gallery/explore.html">The same image as a page to explore</a>, one file made by
`deformvit figure points photo --html`.
"""


def draw(app: Sphinx) -> None:
    """Write the gallery's page and pictures beside the other pages, where git ignores them."""
    folder = Path(app.srcdir) / "gallery"
    logger = logging.getLogger(__name__)
    lines = [PAGE.format()]
    for title, text, command, picture in ENTRIES:
        logger.info("gallery: deformvit %s", command)
        words = command.split()
        where = folder / (words[words.index("--output") + 1] if "--output" in words else "")
        words = words[: words.index("--output")] if "--output" in words else words
        with contextlib.redirect_stdout(io.StringIO()):
            main([*words, "--output", str(where), "--dpi", "110"])
        lines.append(f"## {title}\n\n```\ndeformvit {command}\n```\n\n{text}\n\n![{title}](gallery/{picture})\n")
    with contextlib.redirect_stdout(io.StringIO()):
        main(["figure", "points", "photo", "--html", "--output", str(folder)])
    (Path(app.srcdir) / "gallery.md").write_text("\n".join(lines), encoding="utf-8")


def keep_page(app: Sphinx, error: Exception | None) -> None:
    """Copy explore.html into the site, as Sphinx copies only its own sources."""
    if error is None:
        page = Path(app.srcdir) / "gallery" / "explore.html"
        target = Path(app.outdir) / "gallery" / "explore.html"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(page.read_bytes())


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("builder-inited", draw)
    app.connect("build-finished", keep_page)
    return {"parallel_read_safe": True}
