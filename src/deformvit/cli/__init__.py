"""The command ``deformvit``: train, recipes, eval, predict, figure, explore, convert, table, bench, ablate.

Heavy imports come with a command.
"""

from __future__ import annotations

import errno
import sys
from typing import Any, get_args

import tyro

from deformvit import distributed
from deformvit.cli.ablate import ablate
from deformvit.cli.bench import bench
from deformvit.cli.convert import convert
from deformvit.cli.eval import evaluate
from deformvit.cli.explore import explore
from deformvit.cli.figure import Kind, figure
from deformvit.cli.predict import predict
from deformvit.cli.recipes import recipes_command
from deformvit.cli.table import table
from deformvit.cli.train import train
from deformvit.errors import UserError

EXTRAS = {
    "pyarrow": "train", "tensorboard": "train", "matplotlib": "figures", "faster_coco_eval": "systems",
    "segmentation_models_pytorch": "systems", "starlette": "explore", "uvicorn": "explore",
}  # fmt: skip
"""Which extra installs what not every command needs."""


def main(args: list[str] | None = None) -> None:
    """Run the command; errors that the user can mend are one line, without a traceback."""
    try:
        _run(list(sys.argv[1:] if args is None else args))
    except SystemExit as end:
        if isinstance(end.code, int | None):
            distributed.exit_process(end.code or 0)
        raise
    distributed.exit_process(0)


def _run(words: list[str]) -> None:
    commands: dict[str, Any] = {
        "train": train,
        "recipes": recipes_command,
        "eval": evaluate,
        "predict": predict,
        "figure": figure,
        "explore": explore,
        "convert": convert,
        "table": table,
        "bench": bench,
        "ablate": ablate,
    }
    from deformvit import recipes

    if words[:1] == ["train"] and words[1:2] and words[1].replace("_", "-") in recipes.ALL:
        words[1] = words[1].replace("_", "-")  # recipes go by either spelling
    if words[:1] == ["train"]:
        words = ["--run.dry-run" if word == "--dry-run" else word for word in words]
    if words[:1] == ["figure"] and "--html" in words and words[1] not in get_args(Kind):
        words.insert(1, "points")
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands, prog="deformvit", description=(__doc__ or "").splitlines()[0], args=words
        )
    except UserError as error:
        message = str(error).strip()
        if message.startswith("Caught ") and "DataLoader worker" in message:  # the error is the traceback's last line
            message = message.splitlines()[-1].removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")
        print(f"deformvit: {' '.join(message.split())}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        extra = EXTRAS.get(package)
        if extra is None:
            raise
        print(f"deformvit: this needs {package}: pip install 'deformvit[{extra}]'", file=sys.stderr)
        raise SystemExit(1) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"deformvit: no space left on the disk: {error.filename or 'writing results'}", file=sys.stderr)
        raise SystemExit(1) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None
