"""Compile the CPU kernels: run by the installation (hatch_build.py), or by hand as a script.

Only the standard library is imported, because nothing else is installed yet when this runs. The result is one shared
library without dependencies. It has a C function of every kernel for every instruction set of the processor's family.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
LIBRARY = FOLDER / "kernels.so"
KERNELS = ("deform_attn", "window_attn")
SOURCES = ("native.h", "vectors.h", "cpu.cpp", *(f"{name}.cpp" for name in KERNELS))
NO_COMPILER = "no C++ compiler was found: c++, g++, clang++ or $CXX"
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-ffp-contract=fast", "-fno-math-errno", "-fno-exceptions", "-fno-rtti", "-w")
SETS: dict[str, tuple[int, tuple[str, ...]]] = {  # floats in a register, flags
    "avx512": (16, ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma")),
    "avx2": (8, ("-mavx2", "-mfma")),
    "plain": (4, ()),
}


def instruction_sets(machine: str | None = None) -> list[str]:
    """The instruction sets to compile for on this kind of processor, best first."""
    return list(SETS) if (machine or platform.machine()).lower() in ("x86_64", "amd64") else ["plain"]


def fingerprint() -> str:
    """A hash of the sources and flags. A library built from other ones is not loaded."""
    digest = hashlib.sha256(repr((FLAGS, SETS)).encode())
    for name in SOURCES:
        digest.update((FOLDER / name).read_bytes())
    return digest.hexdigest()[:16]


def compiler() -> list[str] | None:
    """Command of the C++ compiler: ``$CXX``, otherwise the first of c++, g++ and clang++ that is installed."""
    if named := os.environ.get("CXX"):
        return shlex.split(named)
    path = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    return [path] if path else None


def build(library: Path = LIBRARY) -> str | None:
    """Compile to ``library``. Returns why that was not possible, or None."""
    if sys.platform == "win32":
        return "the CPU kernels are not built on Windows"
    command = compiler()
    if command is None:
        return NO_COMPILER
    try:
        with tempfile.TemporaryDirectory() as folder:
            objects = []
            units = [(kernel, name) for name in instruction_sets() for kernel in KERNELS] + [("cpu", "plain")]
            for source, name in units:
                lanes, extra = SETS[name]
                objects.append(str(Path(folder, f"{source}_{name}.o")))
                macros = (f"-DINSTRUCTIONS={name}", f"-DLANES={lanes}", f"-DFINGERPRINT={fingerprint()}")
                _run([*command, *FLAGS, *extra, *macros, "-c", str(FOLDER / f"{source}.cpp"), "-o", objects[-1]])
            built = Path(folder, "kernels.so")
            only_needed = ["-Wl,--as-needed"] if sys.platform == "linux" else []
            _run([*command, "-shared", "-pthread", *only_needed, *objects, "-o", str(built)])
            temporary = library.with_name(f"{library.name}.{os.getpid()}")
            shutil.copyfile(built, temporary)
            os.replace(temporary, library)  # processes that have loaded the old file keep it
    except (OSError, subprocess.CalledProcessError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        return f"the C++ compiler {shlex.join(command)} failed: {lines[0] if lines else error}"
    return None


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


if __name__ == "__main__":
    if reason := build():
        sys.exit(reason)
    print(f"{LIBRARY}: {', '.join(instruction_sets())}")
