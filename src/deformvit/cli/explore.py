"""``deformvit explore``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from deformvit.cli.inputs import DEFAULT_MODEL, sources


def run(
    images: tyro.conf.Positional[list[Path]] = [Path("photo")],  # noqa: B006 - tyro reads it, nobody writes it
    /,
    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = DEFAULT_MODEL,
    compare: tuple[str, ...] = (),
    host: str = "127.0.0.1",
    port: int = 8017,
    open: bool = True,
    threshold: float = 0.5,
    device: str = "auto",
) -> None:
    """Serve a page on which to explore where models look; it needs no other host.

    Drop an image on it, pick a layer, a head and a group, click a query and see its keys; drag the offset scale and see
    points and prediction change; compare models side by side.

    Args:
        images: images that the page offers to begin with, named as for `deformvit figure`.
        model: a model file, a run's folder, a folder of the Hugging Face hub, or a name such as dat_nano.cifar10.
        compare: more models.
        host: address to listen at. Anyone who reaches another than the default's can use the page.
        port: to listen at; 0 takes a free one.
        open: open the page in a browser.
        threshold: detectors: score from which objects count.
        device: a torch device; auto takes the GPU if there is one.
    """
    from deformvit.explore.server import serve

    serve(
        sources(images), [model, *compare], device, host=host, port=port, browser=open,
        threshold=threshold,
    )  # fmt: skip
