"""The console command ``deformvit``: help, version, and the choice of a command.

This module stands beside the package because importing any part of the package imports PyTorch and timm, which takes
seconds. Help and version are read from the package's source files instead, without importing them.
"""

from __future__ import annotations

import ast
import sys
import textwrap
from pathlib import Path

COMMANDS = ("train", "recipes", "data", "eval", "predict", "figure", "explore", "convert", "table", "bench", "ablate")
"""Commands in the order of the help text; each is the file of that name in ``deformvit/cli``."""

PACKAGE = Path(__file__).with_name("deformvit")


def main(args: list[str] | None = None) -> None:
    """Print help or version, or run a command.

    Args:
        args: the words after ``deformvit``; by default those of this process.

    Raises:
        SystemExit: with 2 for a missing or unknown command, 130 after Ctrl+C, else with the status of the command.
    """
    words = list(sys.argv[1:] if args is None else args)
    if not words:
        print(help_text(), file=sys.stderr)
        raise SystemExit(2)
    name, *rest = words
    if name in ("-h", "--help"):
        print(help_text())
    elif name == "--version":
        print(f"deformvit {version()}")
    elif name in COMMANDS:
        try:
            from deformvit.cli import dispatch  # imports PyTorch

            dispatch.call(name, rest)
        except KeyboardInterrupt:
            raise SystemExit(130) from None
    else:
        print(f"deformvit: unknown command {name!r}; the commands are {', '.join(COMMANDS)}", file=sys.stderr)
        raise SystemExit(2)


def help_text() -> str:
    """What the package is, and the commands with their summaries."""
    width = max(map(len, COMMANDS)) + 4
    lines = ["usage: deformvit [-h] [--version] COMMAND ...", ""]
    lines += [*textwrap.wrap(_first_line(_parse("__init__.py")), 80), "", "commands:"]
    for name in COMMANDS:
        lines += textwrap.wrap(
            summary(name), 80, initial_indent=f"  {name}".ljust(width), subsequent_indent=" " * width
        )
    return "\n".join([*lines, "", "`deformvit COMMAND --help` shows the options of a command."])


def summary(name: str) -> str:
    """First docstring line of a command's function ``run``."""
    body = _parse(f"cli/{name}.py").body
    return _first_line(next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == "run"))


def version() -> str:
    """The package's ``__version__``."""
    assignments = [node for node in _parse("__init__.py").body if isinstance(node, ast.Assign)]
    values = {ast.unparse(node.targets[0]): node.value for node in assignments}
    return str(ast.literal_eval(values["__version__"]))


def _parse(path: str) -> ast.Module:
    """Syntax tree of a file of the package."""
    return ast.parse((PACKAGE / path).read_text(encoding="utf-8"))


def _first_line(node: ast.Module | ast.FunctionDef) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0]
