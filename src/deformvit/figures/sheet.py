"""Panels on a canvas that they fill: rows of equal width, as many as the number and the shape of the panels ask for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from deformvit.errors import UserError

ASPECT = 1.6
"""Width by height that a canvas comes near to."""
GAP = 0.08
"""Inches between panels and around them."""
NARROW = 1.6
"""Inches of a panel that can be read."""
LINE = 0.155
"""Inches of a line of text."""


@dataclass(frozen=True)
class Panel:
    """One picture of a figure."""

    draw: Callable[[Axes, float], None]
    """Called with the axes and their width in inches."""
    title: str
    note: str = ""
    """Written beside the title, or below it where there is no room."""


@dataclass(frozen=True)
class Legend:
    """What colours stand for."""

    handles: Sequence[Artist]
    names: Sequence[str]


def sheet(
    parts: Sequence[Sequence[Panel]], aspect: float, *, title: str = "", notes: Sequence[str] = (),
    legend: Legend | None = None, width: float | None = None,
) -> Figure:  # fmt: skip
    """A figure of panels of one shape, without a part of the canvas left over.

    Args:
        parts: panels that belong together, such as the groups of a layer; they are not torn apart without need.
        aspect: height of a panel by its width.
        title: of the figure.
        notes: sentences below the panels.
        legend: below the panels.
        width: of the figure, in inches; by default as its panels need.
    """
    most = 8 if checked_width(width) is None else max(int((width or 0) / NARROW), 1)
    rows = arrange([len(part) for part in parts], aspect, most)
    panels = iter(panel for part in parts for panel in part)
    lines = [list(itertools.islice(panels, count)) for count in rows]
    wide = width or min(max(2.1 * max(rows), 3.4 * min(rows), 5.2), 15.0)
    sides = [(wide - GAP * (count + 1)) / count for count in rows]
    below = [note_lines(line, side) for line, side in zip(lines, sides, strict=True)]
    strips = [strip_of(number) for number in below]
    head = 0.34 if title else 0.02
    keys, columns = _legend_size(legend, wide)
    written = [line for note in notes for line in wrapped(note, wide - 2 * GAP, 7.5)]
    foot = LINE * len(written) + 0.06 if written else 0.0
    tall = head + sum(strip + side * aspect for strip, side in zip(strips, sides, strict=True)) + GAP * len(rows)
    tall += keys + foot
    figure = Figure(figsize=(wide, tall))
    y = tall - head
    for line, side, strip, number in zip(lines, sides, strips, below, strict=True):
        for column, panel in enumerate(line):
            left = GAP + column * (side + GAP)
            place(figure, panel, left, y - strip - side * aspect, side, side * aspect, number)
        y -= strip + side * aspect + GAP
    if title:
        write(figure, title, wide / 2, tall - 0.11, wide - 2 * GAP, 11.0, ha="center", va="top")
    if legend is not None:
        figure.legend(
            legend.handles, legend.names, loc="lower center", bbox_to_anchor=(0.5, foot / tall), ncols=columns,
            fontsize=8, frameon=False, borderaxespad=0.1, borderpad=0.1, handletextpad=0.3, columnspacing=1.2,
        )  # fmt: skip
    for number, text in enumerate(written):
        write(figure, text, GAP, foot - 0.02 - LINE * number, wide - 2 * GAP, 7.5, va="top", color="0.3")
    return figure


def place(figure: Figure, panel: Panel, left: float, bottom: float, wide: float, tall: float, below: int) -> Axes:
    """Draw a panel into a rectangle of the figure, in inches from its lower left corner, with its title above.

    ``below`` is the number of lines that notes have below the titles, or 0: they stand beside these.
    """
    width, height = figure.get_size_inches()
    axes = figure.add_axes((left / width, bottom / height, wide / width, tall / height))
    axes.set_axis_off()
    panel.draw(axes, wide)
    base = bottom + tall + 0.05
    write(figure, panel.title, left, base + LINE * below, wide, 8.5, weight="bold")
    if not below:
        write(figure, panel.note, left + wide, base, wide, 7.5, color="0.3", ha="right")
    for number, line in enumerate(_wrapped_note(panel, wide) if below else (), 1):
        write(figure, line, left, base + LINE * (below - number), wide, 7.5, color="0.3")
    axes.set_label(" | ".join(part for part in (panel.title, panel.note) if part))
    return axes


def write(figure: Figure, text: str, x: float, y: float, room: float, size: float, **style: str) -> None:
    """Text at a place of the figure in inches, smaller where it is longer than ``room``."""
    width, height = figure.get_size_inches()
    size = min(size, size * room / max(inches(text, size, style.get("weight", "normal")), 1e-6))
    figure.text(x / width, y / height, text, fontsize=size, parse_math=False, **style)  # type: ignore[arg-type] # colours


@lru_cache(maxsize=4096)
def inches(text: str, size: float, weight: str = "normal") -> float:
    """Width of a line of text in the default font, at most: at few dots per inch letters are rounded up to pixels."""
    font = FontProperties(size=size, weight=weight)
    return 1.1 * float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) / 72


def arrange(sizes: Sequence[int], aspect: float, most: int = 8) -> list[int]:
    """How many panels each row has, so that rows of equal width make a canvas of a handy shape.

    Args:
        sizes: panels of each part; rows begin with a part unless the canvas becomes too long or rows too uneven.
        aspect: height of a panel by its width.
        most: panels in a row that can still be read.
    """
    sizes = [size for size in sizes if size]
    number, starts = sum(sizes), set(itertools.accumulate(sizes, initial=0))

    def cost(rows: Sequence[int]) -> float:
        tall = sum(aspect / count + 0.025 for count in rows)
        shape = abs(math.log(1 / tall / ASPECT))
        uneven = 0.5 * math.log(max(rows) / min(rows)) + 0.05 * sum(a > b for a, b in itertools.pairwise(rows))
        torn = 0.25 * sum(place not in starts for place in itertools.accumulate(rows))
        return shape + uneven + torn + max(max(rows) - most, 0)

    candidates = []
    for count in range(1, number + 1):
        few, more = number // count, number % count
        candidates.append([few] * (count - more) + [few + 1] * more)
    if len(sizes) <= 12:
        for cuts in itertools.product((False, True), repeat=len(sizes) - 1):
            rows = [sizes[0]]
            for cut, size in zip(cuts, sizes[1:], strict=True):
                rows = [*rows, size] if cut else [*rows[:-1], rows[-1] + size]
            candidates.append(rows)
    return min(candidates, key=cost)


def checked_width(width: float | None) -> float | None:
    """The width of a figure, if one is asked for."""
    if width is not None and not 1 <= width <= 100:
        raise UserError(f"width must be from 1 to 100 inches, got {width}")
    return width


def note_lines(panels: Sequence[Panel], wide: float) -> int:
    """Lines that the notes of a row of panels of that width need below the titles; 0 if all have room beside them."""
    used = [inches(panel.title, 8.5, "bold") + inches(panel.note, 7.5) + 0.15 for panel in panels if panel.note]
    if max(used, default=0.0) <= wide:
        return 0
    return max(len(_wrapped_note(panel, wide)) for panel in panels)


def strip_of(below: int) -> float:
    """Inches that titles and so many lines of notes need above a row."""
    return LINE * (1 + below) + 0.06


def _wrapped_note(panel: Panel, wide: float) -> list[str]:
    if panel.note and inches(panel.note, 6.5) <= wide:
        return [panel.note]
    return wrapped(panel.note, wide, 7.5)


def _legend_size(legend: Legend | None, wide: float) -> tuple[float, int]:
    """Height in inches and columns."""
    if legend is None:
        return 0.0, 1
    longest = max(inches(name, 8.0) for name in legend.names) + 0.45
    columns = min(max(int(wide / longest), 1), len(legend.names))
    return 0.19 * math.ceil(len(legend.names) / columns) + 0.04, columns


def wrapped(text: str, wide: float, size: float) -> list[str]:
    """Lines of text that are at most that many inches wide, where words allow it."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and inches(longer, size) <= wide:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
