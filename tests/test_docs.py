"""The pages' Python and commands run, in order, as a reader would paste them; what a comment says is printed, is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from deformvit.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    *(f"docs/{name}.md" for name in ("layer", "models", "kernels", "systems", "figures")),
    *(f"docs/tutorials/{name}.md" for name in ("train", "layer", "convert", "detect", "explore")),
]


@pytest.mark.parametrize("page", PAGES)
def test_examples_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text()
    kinds = "python|bash" if "tutorials" in page else "python"  # elsewhere commands need data that is not here
    blocks = re.findall(rf"```({kinds})\n(.*?)```", text, re.DOTALL)
    assert blocks
    namespace: dict = {"__name__": "page"}
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, page, "exec"), namespace)
            continue
        for line in block.replace("\\\n", " ").splitlines():
            program, *words = shlex.split(line)
            assert program == "deformvit"
            main(words)
    printed = capsys.readouterr().out
    promised = re.findall(r"print\(.*?#.*?(torch\.Size\(\[[\d, ]+\]\))", "\n".join(block for _, block in blocks))
    for shape in promised:
        assert shape in printed
