"""Time and memory of deformable attention and of whole models on this machine: ``deformvit bench``.

All measurements of a report are made in one run, one at a time, each in a subprocess: a peak of memory is that of one
measurement. Times are medians; models that are compared are timed in turn.
"""

from deformvit.bench.attention import run_attention
from deformvit.bench.explain import explain
from deformvit.bench.models import run_models
from deformvit.bench.systems import run_systems

__all__ = ["explain", "run_attention", "run_models", "run_systems"]
