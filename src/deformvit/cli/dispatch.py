"""Calls one command, and turns its errors into messages and exit statuses.

The file of a command has a function ``run``, whose parameters are the options. Where the options depend on the words
before them, the file has a function ``main`` too, which reads the words and calls ``run``.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from typing import NoReturn

import tyro

from deformvit import distributed
from deformvit.errors import UserError

EXTRAS = {
    "pyarrow": "train", "tensorboard": "train", "matplotlib": "figures", "faster_coco_eval": "systems",
    "segmentation_models_pytorch": "systems", "supervision": "convert", "defusedxml": "convert",
    "starlette": "explore", "uvicorn": "explore",
}  # fmt: skip
"""Optional packages, and the extra of deformvit that installs each."""


def call(name: str, words: list[str]) -> None:
    """Import a command and run it; user-facing errors are printed as one line, without a traceback.

    Args:
        name: file of the command, without ``.py``.
        words: what follows the name on the command line.

    Raises:
        SystemExit: with the status of the error.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files that are not UTF-8 are printed as they are
    try:
        _call(name, words)
    except SystemExit as end:
        if isinstance(end.code, int | None):
            distributed.exit_process(end.code or 0)
        raise
    except KeyboardInterrupt:
        distributed.exit_process(130)
        raise
    distributed.exit_process(0)


def _call(name: str, words: list[str]) -> None:
    try:
        command = importlib.import_module(f"deformvit.cli.{name}")
        if hasattr(command, "main"):
            command.main(words)
        else:
            tyro.cli(command.run, prog=f"deformvit {name}", args=words)
    except UserError as error:
        message = str(error).strip()
        if message.startswith("Caught ") and "DataLoader worker" in message:  # the error is the traceback's last line
            message = message.splitlines()[-1].removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")
        _fail(" ".join(message.split()), error, error.exit_code)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in EXTRAS:
            raise
        _fail(f"this needs {package}: pip install 'deformvit[{EXTRAS[package]}]'", error)
    except BrokenPipeError as error:  # whoever read the output has ended, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at its end
        raise SystemExit(141) from error  # as a shell reports SIGPIPE
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _fail(f"no space left on the disk: {error.filename or 'writing results'}", error)


def _fail(message: str, error: Exception, status: int = 1) -> NoReturn:
    print(f"deformvit: {message}", file=sys.stderr)
    raise SystemExit(status) from error
