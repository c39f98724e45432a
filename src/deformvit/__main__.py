"""``python -m deformvit``, as torchrun starts it: ``torchrun --nproc-per-node 2 -m deformvit eval ...``."""

from deformvit_command import main

main()
