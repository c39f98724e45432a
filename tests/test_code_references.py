"""Files, functions and classes that the pages name exist where they say."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REFERENCE = re.compile(r"`(\w+/[\w/]+\.(?:py|cpp))(?:: (\w+))?`")


def references(page: str) -> list[tuple[str, str]]:
    """(file, name) of every `folder/file.py` and `folder/file.py: name`; the name is empty in the first case."""
    return REFERENCE.findall((ROOT / "docs" / page).read_text())


def check(file: str, name: str) -> None:
    """Raise ``AssertionError`` unless the file exists and defines the name, rather than importing it."""
    path = next((folder / file for folder in (ROOT / "src" / "deformvit", ROOT) if (folder / file).exists()), None)
    assert path is not None, f"there is no {file}"
    if not name:
        return
    if path.is_relative_to(ROOT / "src"):
        module = importlib.import_module(".".join(path.relative_to(ROOT / "src").with_suffix("").parts))
    else:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    assert hasattr(module, name), f"{file} has no {name}"
    assert getattr(module, name).__module__ == module.__name__, f"{name} is not defined in {file}"


@pytest.mark.parametrize(
    ("page", "file", "name"),
    [(page.name, *reference) for page in sorted((ROOT / "docs").glob("*.md")) for reference in references(page.name)],
)
def test_what_the_pages_name_exists(page, file, name):
    check(file, name)


def test_every_equation_names_its_code():
    lines = (ROOT / "docs" / "equations.md").read_text().splitlines()
    rows = [line for line in lines if re.match(r"\| \d ", line)]
    assert [row[2] for row in rows] == list("1234567")
    assert all(name for row in rows for _, name in REFERENCE.findall(row))
    assert all(REFERENCE.search(row) for row in rows)


@pytest.mark.parametrize(
    ("file", "name", "message"),
    [
        ("ops/no_such_file.py", "", "there is no ops/no_such_file.py"),
        ("ops/grid.py", "no_such_function", "ops/grid.py has no no_such_function"),
        ("ops/deformable/attention.py", "check_shapes", "check_shapes is not defined in ops/deformable/attention.py"),
    ],
)
def test_a_wrong_reference_is_told(file, name, message):
    with pytest.raises(AssertionError, match=message):
        check(file, name)
