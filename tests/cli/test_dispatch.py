"""Commands import and build no more than they need, and end with the right status."""

from __future__ import annotations

import errno
import json
import subprocess
import sys

import pytest

import deformvit_command
from deformvit import distributed
from deformvit.cli import recipes as command
from deformvit.errors import UserError


class Stopped(UserError):
    exit_code = 143


def python(script: str) -> list:
    """What a script prints as JSON on its last line, run in a fresh process."""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


IMPORTS = """
import contextlib, io, json, sys
import deformvit
from deformvit_command import COMMANDS, main
before = set(sys.modules)
imported = []
for name in ("table", *COMMANDS):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as shown:
        main([name, "--help"])
    assert f"usage: deformvit {name}" in shown.getvalue()
    imported.append(sorted(set(sys.modules) - before))
print(json.dumps([imported[0], imported[-1]]))
"""


def test_help_of_a_command_imports_only_that_command():
    table, everything = python(IMPORTS)
    assert [name for name in table if name.startswith("deformvit.cli.")] == [
        "deformvit.cli.dispatch", "deformvit.cli.table",
    ]  # fmt: skip
    assert "deformvit.cli.figure" in everything
    optional = {"matplotlib", "starlette", "uvicorn", "pyarrow", "tensorboard", "faster_coco_eval"}
    assert not optional & set(everything)
    rooms = {".".join(name.split(".")[:2]) for name in everything if name.startswith("deformvit.")}
    assert rooms <= {"deformvit.cli", "deformvit.config", "deformvit.distributed", "deformvit.recipes"}


RECIPES = """
import contextlib, json
from deformvit import config

built = []
check = config.BaseConfig.__post_init__
config.BaseConfig.__post_init__ = lambda self: (built.append(self.run.output.name), check(self))[1]

from deformvit_command import main

counts = []
for words in json.loads('{words}'):
    with contextlib.suppress(SystemExit):
        main(words)
    counts.append(list(built))
    built.clear()
print(json.dumps(counts))
"""


def test_only_the_recipe_asked_for_is_built():
    words = {
        ("predict", "--help"): [],
        ("recipes",): [],
        ("train", "--help"): [],
        ("train", "nonsense"): [],
        ("train", "demo", "--help"): ["demo"],
        ("train", "dat_small_imagenet", "--help"): ["dat_small"],
        ("train", "dat-small-imagenet", "--help"): ["dat_small"],
    }
    built = python(RECIPES.replace("{words}", json.dumps(list(words))))
    assert dict(zip(words, built, strict=True)) == words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "train expects the name of a recipe first; `deformvit recipes`"),
        (["dat_tiny_imagnet"], "first, got 'dat_tiny_imagnet', similar: dat-tiny-imagenet; `deformvit recipes`"),
        (["--data.root", "x"], "first, got '--data.root'; `deformvit recipes`"),
    ],
)
def test_unknown_recipe(capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        deformvit_command.main(["train", *words])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_help_of_train_lists_the_recipes(capsys):
    deformvit_command.main(["recipes"])
    listed = capsys.readouterr().out
    deformvit_command.main(["train", "--help"])
    assert listed in capsys.readouterr().out
    assert len(listed.splitlines()) > 20


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (OSError(errno.ENOSPC, "No space exited on device", "a/file"), 1, "no space left on the disk: a/file"),
        (ModuleNotFoundError("No module", name="pyarrow.parquet"), 1, "needs pyarrow: pip install 'deformvit[train]'"),
        (Stopped("asked to stop"), 143, "asked to stop"),
        (KeyboardInterrupt(), 130, ""),
        (SystemExit(3), 3, ""),
    ],
)
def test_status_of_errors(monkeypatch, capsys, error, status, message):
    def fail() -> None:
        raise error

    exited = []
    monkeypatch.setattr(command, "run", fail)
    monkeypatch.setattr(distributed, "exit_process", exited.append)
    with pytest.raises(SystemExit) as stop:
        deformvit_command.main(["recipes"])
    assert stop.value.code == status
    assert exited == [status]
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == bool(message)


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), ModuleNotFoundError(name="deformvit.x")])
def test_programming_errors_keep_their_traceback(monkeypatch, error):
    def fail() -> None:
        raise error

    monkeypatch.setattr(command, "run", fail)
    with pytest.raises(type(error)) as raised:
        deformvit_command.main(["recipes"])
    assert raised.value is error


def test_success_exits_with_zero(monkeypatch, capsys):
    exited = []
    monkeypatch.setattr(distributed, "exit_process", exited.append)
    deformvit_command.main(["recipes"])
    assert exited == [0]


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["eval", "--data", "sample", "--batch-size", "0"], 1),
        (["eval", "--no-such-option"], 2),
        (["table", "--help"], 0),
    ],
)
def test_status_of_the_process(words, status):
    assert subprocess.run([sys.executable, "-m", "deformvit", *words], capture_output=True).returncode == status


def test_output_that_nobody_reads_ends_quietly():
    """``deformvit recipes | head -1``: no traceback, and the status that a shell gives SIGPIPE."""
    command = f"{sys.executable} -m deformvit recipes | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 141)  # 0 where all of it fits into the pipe before head ends
