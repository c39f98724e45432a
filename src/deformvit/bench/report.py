"""Reports of :mod:`deformvit.bench`: a table in Markdown, a JSON file, a figure."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deformvit.storage import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
PASSES = {"forward": "forward", "backward": "forward + backward"}
COLOURS = {
    "no bias": "0.45", "released": "#c77dff", "reference": "#ff4d6d", "tiled": "#ff9f1c", "cpu": "#2a9d8f",
    "triton": "#2a9d8f",
}  # fmt: skip


def title(report: dict[str, Any]) -> str:
    """Machine and settings in one line."""
    machine, settings = report["machine"], report["settings"]
    parts = [machine["device"], f"{machine['threads']} threads", f"torch {machine['torch']}"]
    parts += [settings["dtype"], f"batch {settings['batch']}", f"median of {settings['rounds']}"]
    if report["kind"] == "models":
        parts.append("forward + backward" if settings["backward"] else "forward")
        parts += [word for word in ("features", "compiled") if settings[word]]
    return ", ".join(parts)


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    body = _attention_table(report) if report["kind"] == "attention" else _models_table(report)
    return f"{title(report)}\n\n{body}"


def memory_exponent(rows: Sequence[Row], step: str = "forward") -> float | None:
    """The p of memory ~ tokens^p: slope of the least-squares line through the logarithms. None for fewer than two
    numbers of tokens."""
    points = [(math.log(r["tokens"]), math.log(r[step]["mib"])) for r in rows if step in r and r[step]["mib"] > 0]
    if len({x for x, _ in points}) < 2:
        return None
    mean_x, mean_y = (sum(p[i] for p in points) / len(points) for i in (0, 1))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def _attention_table(report: dict[str, Any]) -> str:
    passes = [name for name in PASSES if name == "forward" or report["settings"]["backward"]]
    head = ["model", "image", "implementation"]
    for name in passes:
        head += [f"{PASSES[name]} (ms)", "x reference", "x no bias", "MiB", "of reference"]
    lines = [head, ["---"] * len(head)]
    for row in report["rows"]:
        by_name = {r["name"]: r for r in report["rows"] if (r["model"], r["image"]) == (row["model"], row["image"])}
        cells = [row["model"], " x ".join(map(str, row["image"])), row["name"]]
        if "error" in row:
            cells.append(row["error"])
            lines.append(cells + [""] * (len(head) - len(cells)))
            continue
        for name in passes:
            reference, no_bias = by_name.get("reference"), by_name.get("no bias")
            cells += [
                f"{1000 * row[name]['seconds']:.3g}",
                _ratio(reference, row, name, "seconds", "{:.2f}"),
                _ratio(no_bias, row, name, "seconds", "{:.2f}"),
                f"{row[name]['mib']:.0f}",
                _ratio(row, reference, name, "mib", "{:.1%}"),
            ]
        lines.append(cells)
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{text}\n\n{_memory_exponents(report, passes)}".rstrip()


def _ratio(above: Row | None, below: Row | None, step: str, key: str, pattern: str) -> str:
    """The value of one row over that of another, formatted; empty without a row or a value, or if either is 0."""
    if above is None or below is None or step not in above or step not in below:
        return ""
    if above[step][key] <= 0 or below[step][key] <= 0:
        return ""
    return pattern.format(above[step][key] / below[step][key])


def _memory_exponents(report: dict[str, Any], passes: list[str]) -> str:
    lines = []
    for name in dict.fromkeys(row["name"] for row in report["rows"]):
        for step in passes:
            rows = [row for row in report["rows"] if row["name"] == name and row["model"] == report["rows"][0]["model"]]
            # Smaller cases take a few MiB, less than what the allocator keeps from before.
            exponent = memory_exponent([row for row in rows if row["tokens"] >= 500], step)
            if exponent is not None:
                lines.append(f"- {name}, {PASSES[step]}: memory grows as tokens to the power {exponent:.2f}")
    return "\n".join(lines)


def _models_table(report: dict[str, Any]) -> str:
    batch = report["settings"]["batch"]
    head = ["model", "image", "parameters (M)", "ms an image", "fastest", "slowest", "x Swin-T", "peak (MiB)"]
    lines = [head, ["---"] * len(head)]
    for row in report["rows"]:
        cells = [row["model"], " x ".join(map(str, row["image"]))]
        if "error" in row:
            cells.append(row["error"])
            lines.append(cells + [""] * (len(head) - len(cells)))
            continue
        swin = [r for r in report["rows"] if r["model"].startswith("swin_tiny") and r["image"] == row["image"]]
        times = [1000 * row[key] / batch for key in ("seconds", "fastest", "slowest")]
        ratio = f"{row['seconds'] / swin[0]['seconds']:.2f}" if swin and "seconds" in swin[0] else ""
        cells += [f"{row['parameters'] / 1e6:.1f}", *(f"{t:.1f}" for t in times), ratio, f"{row['mib']:.0f}"]
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(report: dict[str, Any]) -> Figure:
    """A figure: for attention, time and memory over the number of tokens, logarithmic; for models, bars of both."""
    from matplotlib.figure import Figure

    if report["kind"] == "attention":
        return _draw_attention(report, Figure)
    return _draw_models(report, Figure)


def _draw_attention(report: dict[str, Any], make: type[Figure]) -> Figure:
    passes = [name for name in PASSES if name == "forward" or report["settings"]["backward"]]
    models = list(dict.fromkeys(row["model"] for row in report["rows"]))
    figure = make(figsize=(9.6, 3.6 * len(passes) + 0.5), layout="constrained")
    axes = figure.subplots(len(passes), 2, squeeze=False)
    for line, step in enumerate(passes):
        for column, (key, label, factor) in enumerate((("seconds", "milliseconds", 1e3), ("mib", "MiB", 1.0))):
            axis = axes[line, column]
            drawn = 0
            for name in dict.fromkeys(row["name"] for row in report["rows"]):
                rows = [r for r in report["rows"] if r["name"] == name and r["model"] == models[0] and step in r]
                rows = [r for r in rows if r[step][key] > 0]  # small cases fit into memory allocated before
                drawn += len(rows)
                axis.plot(
                    [r["tokens"] for r in rows], [factor * r[step][key] for r in rows],
                    "--" if name == "no bias" or "compiled" in name else "-", marker="o", markersize=4,
                    color=COLOURS.get(name.partition(",")[0], "black"), label=name,
                )  # fmt: skip
            axis.set(xscale="log", yscale="log" if drawn else "linear", ylabel=label, title=PASSES[step])
            sizes = {r["tokens"]: " x ".join(map(str, r["image"])) for r in report["rows"]}
            axis.set_xticks(list(sizes), [f"{n}\n{text}" for n, text in sizes.items()], fontsize=8)
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("queries, and image")
    axes[-1, 1].set_xlabel("queries, and image")
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"Deformable attention as in stage 3 of DAT-{models[0]}\n{title(report)}", fontsize=9)
    return figure


def _draw_models(report: dict[str, Any], make: type[Figure]) -> Figure:
    rows = [row for row in report["rows"] if "error" not in row][::-1]
    figure = make(figsize=(9.6, 0.34 * len(rows) + 1.3), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    several = len({tuple(row["image"]) for row in rows}) > 1
    names = [f"{row['model']}{' ' + ' x '.join(map(str, row['image'])) if several else ''}" for row in rows]
    colours = ["#2a9d8f" if row["model"].startswith("dat") else "0.65" for row in rows]
    values = [1000 * row["seconds"] / report["settings"]["batch"] for row in rows]
    for axis, numbers, label in ((axes[0], values, "ms an image"), (axes[1], [r["mib"] for r in rows], "peak MiB")):
        bars = axis.barh(range(len(rows)), numbers, color=colours)
        axis.bar_label(bars, fmt="%.0f", fontsize=8, padding=2)
        axis.set_xlabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(rows)), names, fontsize=8)
    figure.suptitle(title(report), fontsize=9)
    return figure


def write(report: dict[str, Any], folder: Path) -> list[Path]:
    """Write NAME.json, NAME.md and, if matplotlib is installed, NAME.png; NAME is attention or models.

    Returns:
        The files that were written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / report["kind"]
    paths = [base.with_suffix(".json"), base.with_suffix(".md")]
    write_atomically(paths[0], lambda path: path.write_text(json.dumps(report, indent=1) + "\n"))
    write_atomically(paths[1], lambda path: path.write_text(table(report) + "\n"))
    if importlib.util.find_spec("matplotlib") is not None and any("error" not in row for row in report["rows"]):
        paths.append(base.with_suffix(".png"))
        figure = draw(report)
        write_atomically(paths[-1], lambda path: figure.savefig(path, dpi=150, format="png"))
    return paths
