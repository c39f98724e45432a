"""The rules of docs/architecture.md, read from the imports."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import deformvit

ROOT = Path(deformvit.__file__).parent
LEAVES = {"devices", "distributed", "errors", "plain", "progress", "runs", "sizes", "storage"}
MAY_IMPORT = {
    "errors": set(),
    "storage": {"errors"},
    "distributed": set(),
    "sizes": set(),
    "devices": {"errors"},
    "plain": {"errors"},
    "progress": {"distributed"},
    "runs": set(),
    "drawing": set(),
    "config": LEAVES,
    "ops": LEAVES | {"ops"},
    "layers": LEAVES | {"ops", "layers"},
    "models": LEAVES | {"config", "ops", "layers", "models"},
    "data": LEAVES | {"config", "data"},
    "engine": LEAVES | {"config", "engine"},
    "recipes": LEAVES | {"config", "recipes"},
    "metrics": LEAVES | {"data"},
    "systems": LEAVES | {"config", "models", "systems"},
    "tasks": LEAVES | {"config", "data", "metrics", "models", "systems", "tasks"},
    "inference": LEAVES | {"data", "models", "results", "systems"},
    "results": {"data", "drawing", "models"},
    "figures": LEAVES | {"drawing", "figures", "layers", "models", "ops", "results"},
    "explore": LEAVES | {"explore", "inference", "layers", "models", "results"},
    "bench": LEAVES | {"config", "ops", "systems", "bench"},
    "paper": LEAVES | {"config", "engine", "figures", "ops", "paper", "recipes", "systems", "tasks"},
}
"""What each room may import; __init__ and cli see everything."""


def imports(path: Path) -> set[str]:
    """Rooms of the package that a file imports, inside functions too."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [
                f"{node.module}.{alias.name}" if node.module == "deformvit" else node.module for alias in node.names
            ]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name and name.startswith("deformvit.")}
    return rooms


def test_imports_go_one_way():
    seen = set()
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).with_suffix("").parts[0]
        if room in ("__init__", "__main__", "cli"):
            continue
        seen.add(room)
        assert room in MAY_IMPORT, f"{path}: a new room; give it rules here and in docs/architecture.md"
        wrong = imports(path) - MAY_IMPORT[room]
        assert not wrong, f"{path} imports {', '.join(sorted(wrong))}"
    assert seen == set(MAY_IMPORT)


def _modules_imported(path: Path, known: set[str]) -> set[str]:
    """Modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known


def test_no_two_files_import_each_other():
    """Directly or through others, also where an import waits inside a function."""
    files = {
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in ROOT.parent.rglob("*.py")
    }
    imported = {name: _modules_imported(path, set(files)) for name, path in files.items()}
    # A package's __init__ imports what is inside it, and reading a file inside reads the __init__ first: no circle.
    edges = {
        name: {to for to in tos if not f"{name}.".startswith(f"{to}.") and to != name} for name, tos in imported.items()
    }
    edges = {name: {to for to in tos if not to.startswith(f"{name}.")} for name, tos in edges.items()}
    for start in files:
        reached, todo = set(), list(edges[start])
        while todo:
            name = todo.pop()
            if name not in reached:
                reached.add(name)
                todo += edges[name]
        assert start not in reached, f"{start} imports itself through others"


def test_coordinates_live_in_one_module():
    for path in ROOT.rglob("*.py"):
        if path.name != "grid.py":
            calls = [node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
            assert not {"grid_sample", "meshgrid"} & set(calls), f"{path}: coordinates belong in ops/grid.py"


def test_files_stay_readable():
    for path in ROOT.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 500, f"{path}: two things in one file?"


def test_every_file_that_the_page_names_is_there():
    page = (ROOT.parents[1] / "docs" / "architecture.md").read_text()
    tree = page.split("```")[1]
    named = set(re.findall(r"(?<![*\w])\w+\.py\b", tree))
    known = {path.name for path in ROOT.parent.rglob("*.py")} | {"hatch_build.py", "test_docs.py", "test_site.py"}
    assert named - known == set()
    rooms = {path.name for path in ROOT.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    files = {path.name for path in ROOT.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert {room for room in rooms if f"  {room}/" not in tree} == set()
    assert files - named == set()


def test_a_log_is_read_in_one_place():
    for path in ROOT.rglob("*.py"):
        if path.name not in ("runs.py", "log.py"):  # the reader, and what writes it
            code = ast.unparse(_without_docstrings(ast.parse(path.read_text())))
            assert "metrics.jsonl" not in code, f"{path}: metrics.jsonl is read by runs.read_metrics"


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return tree
