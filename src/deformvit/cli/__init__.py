"""The commands of ``deformvit``, a file each; :mod:`~deformvit.cli.dispatch` imports only the one asked for."""
