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

Kind = Literal["summary", "points", "keys", "objects", "query", "offsets", "curves"]


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
        kind: `summary`: photo, prediction, points, and attention beside Swin's windows in one wide picture; `points`:
            reference grid, offset arrows and deformed points by layer and group (Fig. 2 of the paper); `keys`: the keys
            that matter most in all deformable layers together (Fig. 5); `objects`: deformed points over what a detector
            or segmentation network found (Fig. 6); `query`: the keys of highest attention for a point (Fig. 7);
            `offsets`: offset fields as colours, with statistics; `curves`: training logs of runs.
        images: image files and folders whose images are taken, subfolders included; or `photo` for the embedded photo,
            `sample` for test images of the embedded Fashion-MNIST. For `curves`: folders of runs.
        model: a model file, a run's folder, a folder of the Hugging Face hub, or a name such as dat_nano.cifar10.
        compare: `query`, `summary` and --html: another model to show beside it.
        output: folder to write to.
        layers: which layers to draw, such as "stage 3, block 4", or numbers: 1 is the first deformable layer. All
            deformable layers by default; in a model without any, all attention layers are drawn and counted.
        point: `query`, `summary` and `keys`: height and width of a point, as shares of what the network sees; the
            middle by default, for `keys` all points together.
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
    if compare and kind not in ("query", "summary") and not html:
        raise UserError(f"compare is for query, summary and --html, not for {kind}")
    chosen_heads = _heads(heads)
    if kind == "curves":
        if html:
            raise UserError("html shows images; curves are of runs")
        _save(_curves(images, width), output / f"curves.{format}", dpi)
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
        title = name if kind == "summary" else ": ".join(part for part in (name, looks[0].headline) if part)
        chosen = _chosen(looks[0], layers, model)
        drawn = _draw(kind, looks, predictors, chosen, point, chosen_heads, count, title, width)
        _save(drawn, output / f"{name}_{kind}.{format}", dpi)
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
    point: tuple[float, float] | None, heads: str | list[int], count: int | None, title: str, width: float | None,
) -> Figure:  # fmt: skip
    from deformvit import figures
    from deformvit.models.files import short_name

    seen, names = looks[0], [predictor.name for predictor in predictors]
    many: dict[str, Any] = {} if count is None else {"count": count}
    place: dict[str, Any] = {"title": title, "hw": seen.hw, "width": width}
    middle = (0.5, 0.5) if kind != "keys" else None
    share = middle if point is None else point
    pixel = None if share is None else (share[0] * seen.hw[0], share[1] * seen.hw[1])
    moving = chosen if seen.trace.deformable else []  # a window layer among them is refused by name
    if kind == "points":
        return figures.points(seen.overlay, moving, **place)
    if kind == "offsets":
        return figures.offsets(seen.picture, moving, **place)
    if kind == "keys":
        return figures.keys(seen.picture, moving, point=pixel, **place, **many)
    if kind == "objects":
        if predictors[0].task == "classification":
            raise UserError(f"objects is for detectors and segmentation networks, and {names[0]} is neither")
        return figures.objects(seen.picture, moving, result=seen.result, **place)
    assert pixel is not None
    if len(looks) > 1 and looks[1].hw != seen.hw:
        raise UserError(f"{names[0]} sees {seen.hw} pixels and {names[1]} {looks[1].hw}; give a size")
    if kind == "summary":
        if len(looks) > 1:
            place |= {"other": looks[1].trace, "other_name": short_name(names[1])}
        return figures.summary(seen.picture, seen.trace, point=pixel, result=seen.result, layers=moving, **place)
    rows = []
    for layer in chosen:
        line = [(_row(layer, names[0] if len(looks) > 1 else ""), layer)]
        if len(looks) > 1:
            line.append((_row(other := _counterpart(layer, looks[1]), names[1]), other))
        rows.append(line)
    return figures.query(seen.picture, rows, pixel, heads=heads, **place, **many)


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

    entries = figures.offset_statistics(chosen, seen.hw)
    wide = max(len("layer"), *(len(entry.layer) for entry in entries))
    print(f"{'layer':<{wide}}  group   mean  largest  deviation  at bound  points off the map")
    for entry in entries:
        bound = "" if math.isnan(entry.saturated) else f"{100 * entry.saturated:.0f} %"
        print(
            f"{entry.layer:<{wide}}  {entry.group:>5}  {entry.mean:>5.1f}  {entry.largest:>7.1f}  "
            f"{entry.deviation:>9.1f}  {bound:>8}  {entry.outside}"
        )
    print("Lengths are pixels of what the network saw.")
    for note in (*figures.outside_notes(chosen), *figures.grid_notes(chosen)):
        print(note)


def _curves(folders: list[Path], width: float | None) -> Figure:
    from deformvit import figures

    logs = {name: figures.read_log(f) for name, f in zip(names_for([str(f) for f in folders]), folders, strict=True)}
    drawn = figures.curves(logs)
    if width is not None:
        inches = drawn.get_size_inches()
        drawn.set_size_inches(width, inches[1] * width / inches[0])
    return drawn


def _save(drawn: Figure, target: Path, dpi: int) -> None:
    from deformvit.storage import write_atomically

    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, lambda path: drawn.savefig(path, dpi=dpi, format=target.suffix[1:]))
    print(target)


SHOWN = {
    "summary": ("arrows", "deformed", "attention"), "points": ("reference", "arrows", "deformed"),
    "offsets": ("arrows",), "objects": ("deformed",), "keys": ("attention",), "query": ("attention",),
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
