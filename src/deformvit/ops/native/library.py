"""The compiled library: loads it, describes problems as C structures, calls its functions."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from deformvit.ops.native import build
from deformvit.ops.settings import ScopedSetting


class Tokens(ctypes.Structure):
    """Features (batch, head, token, channel) whose channels are contiguous; as in native.h."""

    _fields_ = (
        ("data", ctypes.c_void_p), ("batch", ctypes.c_int64), ("head", ctypes.c_int64), ("token", ctypes.c_int64),
    )  # fmt: skip

    @classmethod
    def of(cls, x: Tensor) -> Tokens:
        return cls(x.data_ptr(), *x.stride()[:3])


class Problem(ctypes.Structure):
    """Deformable attention, as in native.h, which says what the fields mean."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "heads", "groups", "queries", "keys", "dim", "dim_v", "width")),
        *((name, ctypes.c_int64) for name in ("table_h", "table_w", "threads", "bfloat16")),
        *((name, ctypes.c_float) for name in ("scale", "step_y", "step_x")),
        ("parallel", ctypes.c_void_p),
        *((name, Tokens) for name in ("q", "k", "v", "out")),
        *((name, ctypes.c_void_p) for name in ("first", "table", "lse")),
        *((name, Tokens) for name in ("grad_out", "grad_q", "grad_k", "grad_v")),
        *((name, ctypes.c_void_p) for name in ("grad_first", "grad_table")),
    )


class WindowProblem(ctypes.Structure):
    """Attention in windows, as in native.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "heads", "dim")),
        *((name, ctypes.c_int64) for name in ("window_h", "window_w", "shift_y", "shift_x", "side")),
        *((name, ctypes.c_int64) for name in ("threads", "bfloat16")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("parallel", "qkv", "table", "out")),
    )


def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """The library and None, or None and why there is no library."""
    advice = f"; build them with: python {build.__file__}"
    if not build.LIBRARY.exists():
        reason = "a C++ compiler is installed now" if build.compiler() else build.NO_COMPILER
        return None, f"the CPU kernels were not compiled when deformvit was installed ({reason}){advice}"
    try:
        library = ctypes.CDLL(str(build.LIBRARY))
        library.deformvit_fingerprint.restype = ctypes.c_char_p
        fingerprint = library.deformvit_fingerprint().decode()
    except (OSError, AttributeError) as error:
        return None, f"the compiled CPU kernels cannot be loaded ({error}){advice}"
    if fingerprint != build.fingerprint():
        return None, f"the compiled CPU kernels were built from other sources than the installed ones{advice}"
    return library, None


def _instruction_sets(library: ctypes.CDLL | None) -> tuple[str, ...]:
    compiled = [name for name in build.SETS if hasattr(library, f"deformvit_supports_{name}")]
    return tuple(name for name in compiled if getattr(library, f"deformvit_supports_{name}")())


def _pool() -> int | None:
    """Address of the function that runs work on PyTorch's own threads; None if PyTorch's OpenMP runtime has none."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (AttributeError, OSError, TypeError):
        return None


# Loaded at import, because torch.compile can read these constants but cannot trace the loading.
_LIBRARY, MISSING = _load()
"""MISSING: why there are no compiled kernels, or None."""
INSTRUCTION_SETS = _instruction_sets(_LIBRARY)
"""The instruction sets that were compiled for and that this processor has, best first."""
POOL = _pool()

_INSTRUCTION_SET: ScopedSetting[str | None] = ScopedSetting("deformvit_instruction_set", None)


def instruction_set(name: str) -> AbstractContextManager[None]:
    """Run the kernels compiled for one of :data:`INSTRUCTION_SETS`, not for the best, inside a ``with`` block in its
    own thread; for tests and benchmarks.

    Raises:
        ValueError: an instruction set that was not compiled or that this processor does not have.
    """
    if name not in INSTRUCTION_SETS:
        raise ValueError(f"no kernels for the instruction set {name!r}; expected one of {', '.join(INSTRUCTION_SETS)}")
    return _INSTRUCTION_SET.replaced(name)


def call(function_name: str, problem: Problem | WindowProblem) -> None:
    """Run ``forward`` or ``backward`` of deformable attention, or ``windows``. Releases the interpreter lock.

    Raises:
        MemoryError: the kernel could not allocate its buffers.
    """
    if _LIBRARY is None:
        raise RuntimeError(MISSING)
    problem.threads = torch.get_num_threads()
    problem.parallel = POOL
    function: Callable[..., int] = getattr(
        _LIBRARY, f"deformvit_{function_name}_{_INSTRUCTION_SET.get() or INSTRUCTION_SETS[0]}"
    )
    if function(ctypes.byref(problem)):
        raise MemoryError(f"the CPU kernels of attention could not allocate memory ({function_name})")
