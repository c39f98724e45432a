"""What deformable attention and whole models cost on this machine: ``deformvit bench``.

Everything of one report is measured in one run, one thing at a time, in processes of their own, so that a peak of
memory is that of one thing. Times are medians, the rounds of models taken in turn.
"""

from deformvit.bench.attention import run_attention
from deformvit.bench.explain import explain
from deformvit.bench.models import run_models
from deformvit.bench.systems import run_systems

__all__ = ["explain", "run_attention", "run_models", "run_systems"]
