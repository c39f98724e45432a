"""A Sphinx extension that writes the gallery: every picture with the commands that draw it.

What the packaged weights can show is drawn by the build. What needs a model that takes minutes to train, on data that
is not here, is in ``images``, drawn once by the commands beside it.
"""

from __future__ import annotations

import contextlib
import io
import shlex
from dataclasses import dataclass
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.typing import ExtensionMetadata

from deformvit_command import main


@dataclass(frozen=True)
class Picture:
    """A picture of the gallery."""

    title: str
    text: str
    command: str
    """Draws it: a call of ``deformvit``."""
    file: str = ""
    """Where it is, below ``docs``; empty for one that the build draws."""


@dataclass(frozen=True)
class Section:
    """Pictures of one model."""

    title: str
    text: str
    pictures: tuple[Picture, ...]
    commands: tuple[str, ...] = ()
    """Make the model, where it is not the packaged one."""


SECTIONS = (
    Section(
        "A photo at 32 pixels",
        "The packaged weights, which were trained on CIFAR-10 and see 32 x 32 pixels of the photo.",
        (
            Picture(
                "Deformed points (Fig. 2)",
                "Reference points are white, arrows are offsets, each column is an offset group.",
                "deformvit figure points photo",
            ),
            Picture(
                "The most important keys (Fig. 5)",
                "Attention propagated through all deformable layers; the area of a circle is its score.",
                "deformvit figure keys photo",
            ),
            Picture(
                "One query (Fig. 7)",
                "The keys of highest attention of the query at the star, all heads together.",
                "deformvit figure query photo --point 0.4 0.5",
            ),
            Picture(
                "One query, head by head",
                "The same for each head of one layer.",
                'deformvit figure query photo --point 0.4 0.5 --heads each --layers "stage 3, block 4"',
            ),
            Picture(
                "Offset fields",
                "Hue is direction, strength is length. Points at the bound, and those that lie off the map, are counted.",
                "deformvit figure offsets photo",
            ),
        ),
    ),
    Section(
        "Detection: nuclei and blood cells",
        "Mask R-CNN and RetinaNet on dat_nano, an hour and half an hour on one core ({doc}`results`). Images: 2018 "
        "Data Science Bowl (CC0) and BCCD (MIT).",
        (
            Picture(
                "Boxes and masks",
                "A validation image with 155 annotated nuclei.",
                "deformvit predict a891bbc89143bca7.jpg --model runs/mask_rcnn_dat_nano_nuclei",
                "images/nuclei.png",
            ),
            Picture(
                "Boxes of several classes",
                "A validation image; objects with a score of at least 0.5.",
                "deformvit predict cells.jpg --model runs/retinanet_dat_nano_bccd",
                "images/cells.png",
            ),
            Picture(
                "Deformed points over objects",
                "In group 2 of stage 4 the points around a nucleus move differently from those on the background.",
                "deformvit figure points 295ac4ecf2ee0211.jpg --model runs/mask_rcnn_dat_nano_nuclei --layers 2 3 4",
                "images/objects.png",
            ),
        ),
        (
            "deformvit train mask-rcnn-dat-nano-nuclei --data.root nuclei",
            "deformvit train retinanet-dat-nano-bccd --data.root bccd",
        ),
    ),
)
INTRODUCTION = """# Gallery

Each picture stands below the command that draws it; {doc}`figures` says what the kinds show.
<a href="gallery/explore.html">The embedded photo as a page to explore</a> is one file, made by
`deformvit figure points photo --html`.
"""


def draw(app: Sphinx) -> None:
    """Write the page, and the pictures that the build draws, beside the other pages, where git ignores them."""
    source = Path(app.srcdir)
    lines = [INTRODUCTION]
    for section in SECTIONS:
        lines += [f"## {section.title}", section.text]
        if section.commands:
            lines.append("\n".join(["```", *section.commands, "```"]))
        for picture in section.pictures:
            file = picture.file or str(_drawn(picture, source / "gallery").relative_to(source))
            lines += [
                f"### {picture.title}",
                f"```\n{picture.command}\n```",
                f"![{picture.title}]({file})",
                picture.text,
            ]
    _run("deformvit figure points photo --html", source / "gallery")
    (source / "gallery.md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")


def _drawn(picture: Picture, folder: Path) -> Path:
    folder = folder / picture.title.split(" (")[0].lower().replace(", ", " ").replace(" ", "-")
    _run(f"{picture.command} --dpi 110", folder)
    return next(folder.glob("*.png"))


def _run(command: str, folder: Path) -> None:
    logging.getLogger(__name__).info("gallery: %s", command)
    with contextlib.redirect_stdout(io.StringIO()):
        main([*shlex.split(command)[1:], "--output", str(folder)])


def keep_page(app: Sphinx, error: Exception | None) -> None:
    """Copy explore.html into the site, as Sphinx copies only its own sources."""
    if error is None:
        page = Path(app.srcdir) / "gallery" / "explore.html"
        target = Path(app.outdir) / "gallery" / "explore.html"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(page.read_bytes())


def setup(app: Sphinx) -> ExtensionMetadata:
    """Called by Sphinx."""
    app.connect("builder-inited", draw)
    app.connect("build-finished", keep_page)
    return {"parallel_read_safe": True}
