"""``deformvit figure``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import tyro

from deformvit.cli.inputs import DEFAULT_MODEL, names_for, report, sources
from deformvit.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from deformvit.explore import Look
    from deformvit.inference import Predictor
    from deformvit.models.trace import LayerRecord

Kind = Literal["points", "keys", "objects", "query", "offsets", "curves"]


def main(words: list[str]) -> None:
    """Read the options; with ``--html`` the kind may be left out."""
    if "--html" in words and words[0] not in get_args(Kind):
        words = ["points", *words]
    tyro.cli(run, prog="deformvit figure", args=words)


def run(
    kind: tyro.conf.Positional[Kind],
    images: tyro.conf.Positional[list[Path]],
    /,
    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = DEFAULT_MODEL,
    compare: str = "",
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("figures"),
    layers: tuple[str, ...] = (),
    point: tuple[float, float] | None = None,
    heads: str = "mean",
    count: int | None = None,
    size: tuple[int, int] | None = None,
    html: bool = False,
    format: Literal["png", "svg", "pdf"] = "png",
    width: float | None = None,
    dpi: int = 150,
    threshold: float = 0.5,
    device: str = "auto",
) -> None:
    """Draw where a model looks, one picture for each image.

    Args:
        kind: `points`: reference grid, offset arrows and deformed points by layer and group (Fig. 2 of the paper);
            `keys`: the keys that matter most in all deformable layers together (Fig. 5); `objects`: deformed points
            over what a detector or segmentation network found (Fig. 6); `query`: the keys of highest attention for a
            point (Fig. 7); `offsets`: offset fields as colours, with statistics; `curves`: training logs of runs.
        images: image files and folders whose images are taken, subfolders included; or `photo` for the embedded photo,
            `sample` for test images of the embedded Fashion-MNIST. For `curves`: folders of runs.
        model: a model file, a run's folder, a folder of the Hugging Face hub, or a name such as dat_nano.cifar10.
        compare: `query` and --html: another model to show beside it.
        output: folder to write to.
        layers: which layers to draw, such as "stage 3, block 4", or numbers: 1 is the first deformable layer. All
            deformable layers by default; in a model without any, all attention layers are drawn and counted.
        point: `query` and `keys`: height and width of a point, as shares of what the network sees; `query` takes the
            middle by default, `keys` all points together.
        heads: `query`: mean, each, or numbers such as 1,3.
        count: `query` and `keys`: keys to draw; 30 and 150 by default.
        size: classifiers: resize the whole image to this height and width; by default what they are evaluated on.
        html: write one page with all images, to explore in a browser, instead of pictures; it opens with what `kind`
            shows, which is `points` if left out.
        format: picture format.
        width: inches; the figure's own by default.
        dpi: pixels per inch.
        threshold: detectors: score from which objects are drawn.
        device: a torch device; auto takes the GPU if there is one.
    """
    from deformvit.explore import look
    from deformvit.inference import load

    if dpi < 1 or (width is not None and width <= 0):
        raise UserError(f"dpi and width must be positive, got {dpi} and {width}")
    if point is not None and not all(0 <= value <= 1 for value in point):
        raise UserError(f"point must be two shares from 0 to 1, got {point[0]} and {point[1]}")
    if compare and kind != "query" and not html:
        raise UserError(f"compare is for query and --html, not for {kind}")
    chosen_heads = _heads(heads)
    if kind == "curves":
        if html:
            raise UserError("html shows images; curves are of runs")
        _save(_curves(images), output / f"curves.{format}", width, dpi)
        return
    inputs, models = sources(images), [model, *([compare] if compare else [])]
    if html:
        report(_page(kind, inputs, models, output, device, threshold, size))
        return
    predictors = [load(name, device=device) for name in models]
    failed = []
    for name, (_, source) in zip(names_for([name for name, _ in inputs]), inputs, strict=True):
        try:
            looks = [look(predictor, source, threshold=threshold, size=size) for predictor in predictors]
        except UserError as error:
            failed.append(str(error))
            continue
        title = ": ".join(part for part in (name, looks[0].headline) if part)
        chosen = _chosen(looks[0], layers, model)
        drawn = _draw(kind, looks, predictors, chosen, point, chosen_heads, count, title)
        _save(drawn, output / f"{name}_{kind}.{format}", width, dpi)
        if kind == "offsets":
            _print_offsets(looks[0], chosen)
    report(failed)


def _heads(text: str) -> str | list[int]:
    if text in ("mean", "each"):
        return text
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"heads must be mean, each, or numbers such as 1,3; got {text!r}") from None


def _chosen(seen: Look, layers: tuple[str, ...], model: str) -> list[LayerRecord]:
    """The named layers, or the deformable ones, or all where there are none."""
    try:
        return [seen.trace.find(word) for word in layers] or seen.trace.deformable or seen.trace.layers
    except UserError as error:
        raise UserError(f"layers of {model}: {error}") from None


def _draw(
    kind: Kind, looks: list[Look], predictors: list[Predictor[Any]], chosen: list[LayerRecord],
    point: tuple[float, float] | None, heads: str | list[int], count: int | None, title: str,
) -> Figure:  # fmt: skip
    from deformvit import figures

    seen, names = looks[0], [predictor.name for predictor in predictors]
    many: dict[str, Any] = {} if count is None else {"count": count}
    pixel = None if point is None else (point[0] * seen.hw[0], point[1] * seen.hw[1])
    moving = chosen if seen.trace.deformable else []  # a window layer among them is refused by name
    if kind == "points":
        return figures.points(seen.overlay, moving, title=title)
    if kind == "offsets":
        return figures.offsets(seen.view, moving, title=title)
    if kind == "keys":
        return figures.keys(seen.view, moving, title=title, point=pixel, **many)
    if kind == "objects":
        if predictors[0].task == "classification":
            raise UserError(f"objects is for detectors and segmentation networks, and {names[0]} is neither")
        return figures.objects(seen.overlay, moving, title=title)
    middle = (0.5 * seen.hw[0], 0.5 * seen.hw[1]) if pixel is None else pixel
    rows = []
    for layer in chosen:
        line = [(_row(layer, names[0] if len(looks) > 1 else ""), layer)]
        if len(looks) > 1:
            if looks[1].hw != seen.hw:
                raise UserError(f"{names[0]} sees {seen.hw} pixels and {names[1]} {looks[1].hw}; give a size")
            line.append((_row(beside := _counterpart(layer, looks[1]), names[1]), beside))
        rows.append(line)
    return figures.query(seen.view, rows, middle, title=title, heads=heads, **many)


def _row(layer: LayerRecord, model: str) -> str:
    from deformvit.models.files import short_name

    return f"{short_name(model)}: {layer.label}, {layer.kind}" if model else layer.label


def _counterpart(layer: LayerRecord, other: Look) -> LayerRecord:
    """The attention layer of another model at the same place, or the last one on a map of the same size."""
    same = [found for found in other.trace.layers if found.name == layer.name]
    alike = [found for found in other.trace.layers if found.feature_hw == layer.feature_hw]
    if not (same or alike):
        raise UserError(
            f"the model to compare with has no attention at {layer.label} or on a map of {layer.feature_hw}"
        )
    return (same or alike)[-1]


def _print_offsets(seen: Look, chosen: list[LayerRecord]) -> None:
    import math

    from deformvit import figures

    print("layer               group   mean  largest  deviation  at bound  outside   (pixels)")
    for entry in figures.offset_statistics(chosen, seen.hw):
        bound = "" if math.isnan(entry.saturated) else f"{100 * entry.saturated:.0f} %"
        print(
            f"{entry.layer:<19} {entry.group:>5}  {entry.mean:>5.1f}  {entry.largest:>7.1f}  {entry.deviation:>9.1f}  "
            f"{bound:>8}  {100 * entry.outside:>5.0f} %"
        )


def _curves(folders: list[Path]) -> Figure:
    from deformvit import figures

    return figures.curves(
        dict(zip(names_for([str(f) for f in folders]), (figures.read_log(f) for f in folders), strict=True))
    )


def _save(drawn: Figure, target: Path, width: float | None, dpi: int) -> None:
    from deformvit.storage import write_atomically

    if width is not None:
        inches = drawn.get_size_inches()
        drawn.set_size_inches(width, inches[1] * width / inches[0])
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, lambda path: drawn.savefig(path, dpi=dpi, format=target.suffix[1:]))
    print(target)


SHOWN = {
    "points": ("reference", "arrows", "deformed"), "offsets": ("arrows",), "objects": ("deformed",),
    "keys": ("attention",), "query": ("attention",),
}  # fmt: skip
"""What a page of that kind shows when it is opened."""


def _page(
    kind: Kind, inputs: list[tuple[str, Any]], models: list[str], output: Path, device: str, threshold: float,
    size: tuple[int, int] | None,
) -> list[str]:  # fmt: skip
    from deformvit.explore.page import write_page

    failed = write_page(
        output / "explore.html", inputs, models, device, threshold=threshold, size=size, show=SHOWN[kind]
    )
    print(output / "explore.html")
    return failed
