"""Tables 3, 4 and 5 with published and measured values: ``deformvit table 3 | 4 | 5``."""

from __future__ import annotations

import json
from pathlib import Path

from deformvit import recipes
from deformvit.config import DetectionConfig, SegmentationConfig
from deformvit.paper.complexity import Complexity, measure
from deformvit.paper.system_cost import Cost
from deformvit.recipes.published import DENSE_TABLES, DenseTable, System
from deformvit.systems import build_detector, build_segmenter

STRIDE = (1, 1, 2, 2)
"""The key grid with which the paper's counts come out."""


def cost(row: System, table: DenseTable, stride: tuple[int, ...] | None = None) -> Complexity:
    """Parameters and multiply-adds of a row at the table's image size, with another key grid if ``stride`` is given."""
    config = recipes.ALL[row.recipe]()
    args = {"stride": stride} if stride else {}
    if isinstance(config, DetectionConfig):
        return measure(lambda: Cost(build_detector(config, table.classes, args)), (3, *table.size), activations=False)
    assert isinstance(config, SegmentationConfig)
    return measure(lambda: Cost(build_segmenter(config, table.classes, args)), (3, *table.size), activations=False)


def rows(number: str, runs: Path | None = None) -> list[list[str]]:
    """Header and rows of a table, published values in brackets behind measured ones."""
    table = DENSE_TABLES[number]
    recorded = _recorded(runs) if runs is not None else {}
    counted: dict[str, tuple[Complexity, Complexity]] = {}
    lines = [["system", "params M", "published", "mult-adds G", "with r = 2", "published", *table.columns]]
    for row in table.rows:
        cells = [row.label, "", row.params, "", "", row.flops]
        if row.recipe:
            what = row.recipe.removesuffix("-1x").removesuffix("-3x")  # schedules do not change the cost
            if what not in counted:
                counted[what] = cost(row, table), cost(row, table, STRIDE)
            plain, strided = counted[what]
            cells[1] = f"{plain.parameters / 1e6:.2f}"
            cells[3:5] = [f"{plain.multiply_adds / 1e9:.0f}", f"{strided.multiply_adds / 1e9:.0f}"]
        measured = recorded.get(row.recipe, {})
        for i in range(len(table.columns)):
            found = measured.get(table.metrics[i]) if i < len(table.metrics) else None
            published = row.results[i] if i < len(row.results) else "-"
            cells.append(published if found is None else f"{found:.1f} ({published})")
        lines.append([cell or "-" for cell in cells])
    return lines


def _recorded(runs: Path) -> dict[str, dict[str, float]]:
    """The last evaluation of every run whose folder has the name of a recipe."""
    found = {}
    for name in recipes.ALL:
        for folder in (runs / name, runs / name.replace("-", "_")):
            try:
                epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
                found[name] = [e for e in epochs if "box_AP" in e or "mIoU" in e][-1]
            except (OSError, ValueError, IndexError):
                continue
    return found
