"""The pages say what is true: their Python and commands run or parse, their links, numbers and model sizes hold."""

from __future__ import annotations

import functools
import importlib
import re
import shlex
from pathlib import Path

import pytest
import timm
import torch
import tyro

import deformvit_command
from deformvit import recipes
from deformvit.models.files import packaged
from deformvit_command import main

ROOT = Path(__file__).parents[1]
RUN = [
    "README.md",
    *(f"docs/{name}.md" for name in ("layer", "models", "kernels", "systems", "figures", "checkpoints")),
    *(f"docs/tutorials/{name}.md" for name in ("predict", "train", "layer", "convert", "detect", "explore")),
]
"""Pages whose Python runs, in order, as a reader would paste it."""
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    if path.name != "gallery.md"  # written by the build of the site
)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", RUN)
def test_examples_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    kinds = "python|bash" if "tutorials" in page else "python"  # elsewhere commands need data that is not here
    blocks = re.findall(rf"```({kinds})\n(.*?)```", read(page), re.DOTALL)
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


def commands(page: str) -> list[str]:
    """Lines of code that call ``deformvit``, and inline code that calls it with arguments."""
    text = read(page).replace("\\\n", " ")
    blocks = re.findall(r"```[^\n]*\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if re.match(r"deformvit [a-z]", line)]
    inline = re.findall(r"`(deformvit [a-z]+ [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    everything = [re.sub(r"\s#.*", "", line) for line in (*lines, *(" ".join(line.split()) for line in inline))]
    # Not calls: alternatives, placeholders of names, and variables of a shell.
    return [line for line in everything if not re.search(r" \| |\$|\bKIND\b|\bRECIPE\b|\bNAME\b", line)]


def must_parse(line: str) -> None:
    _, name, *words = shlex.split(line)
    assert name in deformvit_command.COMMANDS, line
    if "--help" in words:
        return
    try:
        if name == "train":
            resumed = words[0] == "--run.resume"  # of any recipe
            config = recipes.ALL["demo" if resumed else words[0]]()
            options = ["--run.dry-run" if word == "--dry-run" else word for word in words[not resumed :]]
            tyro.cli(type(config), default=config, args=options)
        else:
            run = importlib.import_module(f"deformvit.cli.{name}").run
            tyro.cli(functools.wraps(run)(lambda *args, **options: None), args=words)
    except (SystemExit, KeyError) as error:
        pytest.fail(f"{line}: {error!r}")


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md" and commands(page)])
def test_commands_parse(page):
    for line in commands(page):
        must_parse(line)


def test_the_gallery(monkeypatch):
    """What its build runs and prints parses, and what it does not draw is there."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    sections = importlib.import_module("gallery").SECTIONS
    for section in sections:
        for command in (*section.commands, *(picture.command for picture in section.pictures)):
            if command.startswith("deformvit "):
                must_parse(command)
            else:
                program, script, *_ = shlex.split(command)
                assert (program, (ROOT / script).is_file()) == ("python", True), command
        for picture in section.pictures:
            assert not picture.file or (ROOT / "docs" / picture.file).is_file(), picture.file
            assert picture.file or (" photo" in picture.command and not section.commands), picture.command


def test_pictures_are_small():
    for picture in (ROOT / "docs" / "images").iterdir():
        assert picture.stat().st_size <= 300_000, f"{picture.name}: {picture.stat().st_size} bytes"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        path, _, anchor = target.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        found = (ROOT / page).parent / path if path else ROOT / page
        assert found.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


def test_every_page_is_in_the_site():
    toctree = set(re.findall(r"^[\w/]+$", read("docs/index.md") + read("docs/api.md"), re.MULTILINE))
    pages = {page.removeprefix("docs/").removesuffix(".md") for page in PAGES if page.startswith("docs/")}
    assert pages - {"index"} <= toctree


def test_figure_6_is_drawn_by_figure_objects():
    named = 0
    for page in PAGES:
        for line in read(page).splitlines():
            if re.search(r"Fig\. 6\b|Figure 6\b", line) and (kind := re.search(r"deformvit figure (\w+)", line)):
                assert kind[1] == "objects", f"{page}: {line}"
                named += 1
    assert named >= 3


def table(page: str, heading: str) -> list[list[str]]:
    """Cells of the table whose header row begins with ``heading``, without the header."""
    rows = read(page).split(f"\n| {heading} |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip().strip("|").split(" | ")] for row in rows]


def test_models_and_weights():
    """The sizes of the models, and which weights are there; README and docs/models.md give the same."""
    here, there = table("README.md", "model"), table("docs/models.md", "name")
    for row in here:
        if name := re.fullmatch(r"`(\w+)`", row[0]):
            assert row[:3] == next(other[:3] for other in there if other[0] == row[0])
            with torch.device("meta"):
                model = timm.create_model(name[1], num_classes=10 if name[1] == "dat_nano" else 1000)
            assert row[1] == f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M"
            weights = [weight for weight in packaged() if weight.startswith(f"{name[1]}.")]
            assert re.findall(r"`(.*?)`", row[4]) == weights
            assert ("download by hand" in row[4]) == (not weights)
    assert len(here) == len(there) + 1


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d[\d,.]*\d|\d", text))


def test_measured_numbers_are_those_of_the_results():
    """All numbers of a cell of README's measurements stand on one line of the pages that say how they were measured."""
    lines = [numbers(line) for page in ("docs/results.md", "docs/reproduce.md") for line in read(page).splitlines()]
    rows = read("README.md").split("| | paper | baseline | ours |")[1].split("\n\n")[0].splitlines()[2:]
    cells = [cell for row in rows for cell in row.strip().strip("|").split("|")[1:] if numbers(cell)]
    assert len(cells) > 20
    for cell in cells:
        assert any(numbers(cell) <= line for line in lines), cell


def test_nothing_is_said_to_be_on_an_index():
    for page in PAGES:
        for argument in re.findall(r"pip install (?:-e )?[\"']?([^\s\"'`]+)", read(page)):
            assert argument.startswith("."), f"{page}: pip install {argument}"
