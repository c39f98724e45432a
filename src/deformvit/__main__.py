"""``python -m deformvit``, and what torchrun starts: ``torchrun --nproc-per-node 2 -m deformvit eval ...``."""

from deformvit.cli import main

main()
