"""Files for other programs (workflows, hooks, citation): valid, and what they name is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

import deformvit
import deformvit_command

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKE = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def steps(workflow: dict) -> list[dict]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow(path):
    text = path.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert "has not been run" in text.splitlines()[0]
    assert set(workflow) <= {"name", True, "permissions", "concurrency", "jobs"}  # YAML reads the key "on" as true
    assert {"ci", "docs", "wheels"} == {other.stem for other in WORKFLOWS}
    runs = [step["run"] for step in steps(workflow) if "run" in step]
    runs += [step["env"]["CIBW_TEST_COMMAND"] for step in steps(workflow) if "CIBW_TEST_COMMAND" in step.get("env", {})]
    for command in " && ".join(runs).split(" && "):
        words = shlex.split(command)
        words = words[2:] if words[:2] == ["python", "-m"] else words
        assert words[0] in {"make", "deformvit", "pip", "uv", "pytest", "cibuildwheel"}, command
        if words[0] == "make":
            assert set(words[1:]) <= MAKE, command
        if words[0] == "deformvit":
            assert words[1] in deformvit_command.COMMANDS, command
    for step in steps(workflow):
        assert ("uses" in step) != ("run" in step)
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])
    for file in re.findall(r"[\w/.]+\.(?:py|txt|toml)\b", text):
        assert (ROOT / file).exists(), f"{path.name}: {file}"


def test_tests_run_on_three_systems_with_the_oldest_and_a_new_python():
    matrix = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]["test"]["strategy"]["matrix"]
    assert [name.partition("-")[0] for name in matrix["os"]] == ["ubuntu", "macos", "windows"]
    oldest = re.search(r'requires-python = ">=([\d.]+)"', read("pyproject.toml"))
    assert oldest is not None
    assert matrix["python"] == [oldest[1], "3.13"]


def test_site_is_kept_from_where_make_writes_it():
    upload = steps(yaml.safe_load(read(".github/workflows/docs.yml")))[-1]
    assert f"-b html docs {upload['with']['path']}\n" in read("Makefile")


def test_hooks_are_the_linters_of_make_lint():
    hooks = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"][0]["hooks"]
    lint = re.search(r"^lint:.*?\n\n", read("Makefile"), re.MULTILINE | re.DOTALL)
    assert lint is not None
    tools = re.findall(r"\$\(BIN\)/(ruff \w+|mypy)", lint[0])
    assert [re.match(r"\.venv/bin/(ruff \w+|mypy)", hook["entry"])[1] for hook in hooks] == tools


def test_citation_is_of_this_version_and_both_papers():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == deformvit.__version__
    assert citation["license"] == "Apache-2.0"
    bibtex = re.search(r"```bibtex\n(.*?)```", read("README.md"), re.DOTALL)
    assert bibtex is not None
    titles = [paper["title"] for paper in citation["references"]]
    assert re.findall(r"^  title +=\s\{(.*)\}", bibtex[1], re.MULTILINE) == titles
    for paper in citation["references"]:
        names = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
        assert bibtex[1].count(f"{{{names}}}") == 2


def test_readme_lists_the_extras():
    extras = re.search(r"optional-dependencies\]\n(.*?)\n\n", read("pyproject.toml"), re.DOTALL)
    assert extras is not None
    names = set(re.findall(r"^(\w+) = \[", extras[1], re.MULTILINE)) - {"docs", "dev"}
    assert names == set(re.findall(r'^\| `pip install "\.\[(\w+)\]"`', read("README.md"), re.MULTILINE))


def test_paths_in_contributing_exist():
    for path in re.findall(r"`((?:src|tests|docs)/[\w/.-]+)`", read("CONTRIBUTING.md")):
        assert (ROOT / path).exists(), path
    for words in re.findall(r"pytest ((?:tests/\S+ ?)+)", read("CONTRIBUTING.md")):
        for path in words.split():
            assert (ROOT / path).exists(), path
    for target in re.findall(r"make ([a-z-]+)", read("CONTRIBUTING.md")):
        assert target in MAKE
