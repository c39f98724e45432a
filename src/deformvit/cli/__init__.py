"""The commands of ``deformvit``, a file each; :mod:`~deformvit.cli.dispatch` imports only the one asked for."""

from deformvit_command import main

__all__ = ["main"]
