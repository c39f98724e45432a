"""Compile the CPU kernels: run by the installation (hatch_build.py), or by hand as a script.

The standard library alone, since an installation has nothing else yet. The result is one shared library without
dependencies: plain C functions, one set for every instruction set the processor family may have.
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
    """Those to compile for, best first."""
    return list(SETS) if (machine or platform.machine()).lower() in ("x86_64", "amd64") else ["plain"]


def fingerprint() -> str:
    """Of the sources and flags: a library made from others is not loaded."""
    digest = hashlib.sha256(repr((FLAGS, SETS)).encode())
    for name in SOURCES:
        digest.update((FOLDER / name).read_bytes())
    return digest.hexdigest()[:16]


def compiler() -> list[str] | None:
    """Command of the C++ compiler: ``$CXX``, otherwise the first of c++, g++ and clang++ that is there."""
    if named := os.environ.get("CXX"):
        return shlex.split(named)
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    return [found] if found else None


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
            made = Path(folder, "kernels.so")
            only_needed = ["-Wl,--as-needed"] if sys.platform == "linux" else []
            _run([*command, "-shared", "-pthread", *only_needed, *objects, "-o", str(made)])
            temporary = library.with_name(f"{library.name}.{os.getpid()}")
            shutil.copyfile(made, temporary)
            os.replace(temporary, library)  # whoever has the old one loaded keeps it whole
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return (
            f"the C++ compiler {shlex.join(command)} failed: {said.strip().splitlines()[0] if said.strip() else error}"
        )
    return None


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


if __name__ == "__main__":
    if reason := build():
        sys.exit(reason)
    print(f"{LIBRARY}: {', '.join(instruction_sets())}")
