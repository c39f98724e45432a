"""A Sphinx extension that writes the gallery: every picture with the commands that draw it.

What the packaged weights can show is drawn by the build. What needs a model that takes minutes to train, on data that
is not here, is in ``images``, drawn once by the commands beside it.
"""

from __future__ import annotations

import contextlib
import io
import shlex
import shutil
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
                "In one picture",
                "Points of three layers, and what one query attends to beside the reach of Swin's windows.",
                "deformvit figure summary photo --point 0.4 0.5",
            ),
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
                "Hue is direction, strength is length. Points at the bound and off the map are counted.",
                "deformvit figure offsets photo",
            ),
            Picture(
                "Another size",
                "No model has one input size: the same weights on the whole photo at 80 x 112 pixels.",
                'deformvit figure points photo --size 80 112 --layers "stage 3, block 2" "stage 4, block 1"',
            ),
            Picture(
                "The page",
                "In a browser: drag the deformation, choose a layer, click a query.",
                "deformvit explore photo",
                "images/page.png",
            ),
        ),
    ),
    Section(
        "Classification at 64 and 128 pixels",
        "Blood cells cut out of BCCD's images (MIT), red, white and platelets: 2,804 to train on, 1,137 to validate. "
        "Two epochs from the packaged weights at 64 pixels, about three minutes on a free core, name 99.4 % of the "
        "latter (top-1; 85 % are red); 40 steps more at 128 pixels, 98.9 %.",
        (
            Picture(
                "A white blood cell at 64 pixels",
                "The white cell's prediction, points, and what its middle attends to.",
                "deformvit figure summary cells/val/WBC/BloodImage_00017_0.png --model runs/cells64",
                "images/cell64.jpg",
            ),
            Picture(
                "Its points at 128 pixels",
                "The later layers: every group moves its points in a way of its own.",
                "deformvit figure points cells/val/WBC/BloodImage_00017_0.png --model runs/cells128 "
                '--layers "stage 3, block 4" "stage 4, block 1" --dpi 100',
                "images/cell128.jpg",
            ),
        ),
        (
            "python benchmarks/make_gallery_data.py crops bccd cells",
            "deformvit train folder --data.root cells --data.img-size 64 --run.epochs 2 --run.output runs/cells64",
            "deformvit train folder --data.root cells --data.img-size 128 --model.checkpoint runs/cells64 "
            "--run.steps 40 --optim.warmup-steps 4 --run.output runs/cells128",
        ),
    ),
    Section(
        "Detection: nuclei and blood cells",
        "Mask R-CNN and RetinaNet on dat_nano, an hour and half an hour on one core ({doc}`results`). Images: 2018 "
        "Data Science Bowl (CC0) and BCCD (MIT). Drawn by an earlier version: today scores hide less of the objects.",
        (
            Picture(
                "Boxes and masks",
                "A validation image with 155 annotated nuclei.",
                "deformvit predict nuclei/val/a891bbc89143bca7.jpg --model runs/mask_rcnn_dat_nano_nuclei",
                "images/nuclei.png",
            ),
            Picture(
                "Boxes of several classes",
                "A validation image; objects with a score of at least 0.5.",
                "deformvit predict bccd/val/BloodImage_00000.jpg --model runs/retinanet_dat_nano_bccd",
                "images/cells.png",
            ),
            Picture(
                "Deformed points over objects",
                "In group 2 of stage 4 the points around a nucleus move differently from those on the background.",
                "deformvit figure points nuclei/val/295ac4ecf2ee0211.jpg --model runs/mask_rcnn_dat_nano_nuclei "
                "--layers 2 3 4",
                "images/objects.png",
            ),
        ),
        (
            "deformvit train mask-rcnn-dat-nano-nuclei --data.root nuclei",
            "deformvit train retinanet-dat-nano-bccd --data.root bccd",
        ),
    ),
    Section(
        "Segmentation: nuclei",
        "Semantic FPN on dat_nano: three epochs on 520 images of the 2018 Data Science Bowl (CC0), about five minutes "
        "on a free core, have 89.3 % mIoU on 80 others.",
        (
            Picture(
                "A class for every pixel",
                "Stained tissue; most of the images that it was trained on are of fluorescent nuclei.",
                "deformvit predict nuclei_labels/images/validation/709e094e39629a9c.png --model runs/nuclei_semantic",
                "images/tissue.png",
            ),
            Picture(
                "Deformed points over objects (Fig. 6)",
                "Of the last layers of the last two stages, with all groups.",
                "deformvit figure objects nuclei_labels/images/validation/709e094e39629a9c.png "
                "--model runs/nuclei_semantic --dpi 100",
                "images/tissue_points.jpg",
            ),
        ),
        (
            "python benchmarks/make_gallery_data.py labels nuclei nuclei_labels",
            "deformvit train semantic-fpn-dat-nano-camvid --data.root nuclei_labels --data.scale 256 512 "
            "--run.epochs 3 --run.output runs/nuclei_semantic",
        ),
    ),
    Section(
        "Comparison: beside a Swin of the same size",
        "dat_nano with shifted windows in the place of deformable attention, trained on CIFAR-10 with the same recipe: "
        "85.7 % top-1, where dat_nano has 85.8 % ({doc}`results`).",
        (
            Picture(
                "What both attend to",
                "Two views of the page, in stage 2. Circles are keys, their area is the attention weight.",
                "deformvit explore photo --compare runs/swin",
                "images/explore.png",
            ),
        ),
        (
            "deformvit train dat-nano-cifar10 --data.root cifar10 --run.output runs/swin --model.args shifting swin "
            """blocks '("window","window shifted","window shifted","shifted")'""",
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
            lines.append(_block(*section.commands))
        for picture in section.pictures:
            file = picture.file or str(_drawn(picture, source / "gallery").relative_to(source))
            lines += [
                f"### {picture.title}",
                _block(picture.command),
                f"![{picture.title}]({file})",
                picture.text,
            ]
    _run("deformvit figure points photo --html", source / "gallery")
    (source / "gallery.md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")


def _block(*commands: str) -> str:
    """Commands as code; those that are too long for a line have one for each option."""
    lines = [command if len(command) <= 72 else command.replace(" --", " \\\n    --") for command in commands]
    return "\n".join(["```", *lines, "```"])


def _drawn(picture: Picture, folder: Path) -> Path:
    folder = folder / picture.title.split(" (")[0].lower().replace(", ", " ").replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
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
