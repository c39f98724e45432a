"""The Python of the pages runs, in order, as a reader would paste it; what a comment says is printed, is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "docs/layer.md", "docs/models.md", "docs/kernels.md", "docs/dense.md"]


@pytest.mark.parametrize("page", PAGES)
def test_examples_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    namespace: dict = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, page, "exec"), namespace)
    printed = capsys.readouterr().out
    promised = re.findall(r"print\(.*?#.*?(torch\.Size\(\[[\d, ]+\]\))", "\n".join(blocks))
    for shape in promised:
        assert shape in printed
