"""Which implementations can run on this machine, and why others cannot: ``deformvit bench --explain``."""

from __future__ import annotations

from deformvit.bench import attention
from deformvit.bench.measure import DTYPES, machine
from deformvit.devices import pick_device
from deformvit.ops.deformable import IMPLEMENTATIONS, KERNELS, choose
from deformvit.ops.native import library


def explain(device: str = "auto", dtype: str = "float32") -> str:
    """Every implementation and whether it can run, and what ``impl="auto"`` takes at the benchmark's sizes."""
    target = pick_device(device)
    about = machine(target)
    small = attention.Case("T", (64, 80), *attention.WIDTHS["T"])
    (q, k, v, pos, table), query_hw = attention.inputs(small, 1, DTYPES[dtype], target)
    kernels = dict(KERNELS.values())
    lines = [f"{about['device']}, {about['threads']} threads, torch {about['torch']}, {dtype}", ""]
    for name in IMPLEMENTATIONS:
        reason = kernels[name](q, k, v, pos, table, query_hw, 0.0) if name in kernels else None
        lines.append(f"  {name:<10} {'can run' if reason is None else f'cannot run: {reason}'}")
    if library.MISSING is None:
        sets = ", ".join(library.INSTRUCTION_SETS)
        threads = "PyTorch's" if library.POOL else "their own, because PyTorch's OpenMP runtime was not found"
        lines += ["", f"CPU kernels: instruction sets of this processor, best first: {sets}; threads: {threads}"]
    lines += ["", "impl='auto' takes"]
    for case in attention.cases(["T"], attention.SIZES):
        with target:
            (q, k, v, pos, table), query_hw = attention.inputs(case, 1, DTYPES[dtype], target)
        choice = choose(q, k, v, pos, table, query_hw=query_hw)
        lines.append(f"  {case.image[0]:>4} x {case.image[1]:<4}  {choice.impl}: {choice.reason}")
    return "\n".join(lines)
