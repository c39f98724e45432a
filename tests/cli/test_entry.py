"""The console command's own answers come without PyTorch and agree with the package."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import deformvit
import deformvit_command

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from deformvit_command import main; main()"]


def run(*words: str, command: list[str] = COMMAND) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, *words], capture_output=True, text=True)


def command_files() -> set[str]:
    """Files of the folder of commands that define ``run``."""
    return {
        path.stem
        for path in (ROOT / "src/deformvit/cli").glob("*.py")
        if any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in ast.parse(path.read_text()).body)
    }


@pytest.mark.parametrize(
    ("words", "status"), [([], 2), (["--help"], 0), (["-h"], 0), (["--version"], 0), (["foo"], 2), (["--foo"], 2)]
)
def test_answers_without_importing_pytorch(words, status):
    ended = run(*words, command=[sys.executable, "-X", "importtime", *COMMAND[1:]])
    assert ended.returncode == status
    imported = {
        line.rpartition("|")[2].strip() for line in ended.stderr.splitlines() if line.startswith("import time:")
    }
    assert "deformvit_command" in imported  # the output is as read here
    assert not {"torch", "timm", "tyro", "numpy", "deformvit"} & imported


def test_help_lists_the_commands_there_are():
    ended = run("--help")
    listed = re.findall(r"^  (\w+) ", ended.stdout.split("commands:")[1], re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) == command_files()
    text = " ".join(ended.stdout.split())
    for name in listed:
        summary = importlib.import_module(f"deformvit.cli.{name}").run.__doc__.splitlines()[0]
        assert f" {name} {summary} " in text
    assert (deformvit.__doc__ or "").splitlines()[0] in text
    assert ended.stderr == ""


def test_without_arguments_help_goes_to_standard_error():
    ended = run()
    assert ended.stdout == ""
    assert ended.stderr == run("--help").stdout


def test_version_is_the_package_version():
    assert run("--version").stdout == f"deformvit {deformvit.__version__}\n"


def test_unknown_command_names_the_commands():
    ended = run("foo", "--bar")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("deformvit: unknown command 'foo'; the commands are ")
    assert set(line.partition(" are ")[2].split(", ")) == command_files()


def test_python_m_and_package_are_the_same_command():
    ended = run("--version", command=[sys.executable, "-m", "deformvit"])
    assert (ended.returncode, ended.stdout) == (0, f"deformvit {deformvit.__version__}\n")
    assert run("foo", command=[sys.executable, "-m", "deformvit"]).returncode == 2
    assert deformvit_command.main is deformvit_command.main


def test_console_script_is_packaged():
    tomllib = pytest.importorskip("tomllib", reason="tomllib is part of Python from 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    module, _, function = project["project"]["scripts"]["deformvit"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert f"src/{module.replace('.', '/')}.py" in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
