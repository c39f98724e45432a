# mypy: disable-error-code="import-untyped, import-not-found"
"""Launch parameters of the Triton kernels on this GPU: every candidate's time, and the fastest of each kernel.

python benchmarks/tune_triton.py --size 50 84 --heads 12 --groups 3 --dim 32 --dtype bfloat16

What wins goes into ``launch`` in src/deformvit/ops/deformable/triton.py.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator

import torch

from deformvit.ops.deformable import triton as ours
from deformvit.ops.deformable.bias import table_cells


def candidates() -> Iterator[ours.Launch]:
    for block_q, block_k, warps, stages in itertools.product((32, 64, 128), (32, 64, 128), (4, 8), (1, 2, 3)):
        if block_q * block_k <= 128 * 64:
            yield ours.Launch(block_q, block_k, warps, stages)


def kernels(options: argparse.Namespace) -> dict[ours.Pass, Callable[[ours.Launch], object]]:
    """Of each kernel, a function that runs it once with given launch parameters."""
    dtype = getattr(torch, options.dtype)
    (height, width), batch, heads = options.size, options.batch, options.heads
    queries = height * width
    keys = options.keys or queries
    q = torch.randn(batch, heads, queries, options.dim, device="cuda", dtype=dtype)
    k, v = (torch.randn(batch, heads, keys, options.dim, device="cuda", dtype=dtype) for _ in range(2))
    pos = torch.rand(batch, options.groups, keys, 2, device="cuda") * 2 - 1
    table = torch.randn(heads, 2 * height - 1, 2 * width - 1, device="cuda")
    cells = table_cells(pos, table, (height, width), "datpp")
    inputs = q, k, v, cells.first, cells.table
    sizes = *cells.step, width, options.dim**-0.5
    out, lse = ours.run_forward(*inputs, *sizes)
    grad = torch.randn_like(out)

    def backward(queries: ours.Launch | None = None, keys: ours.Launch | None = None) -> object:
        needed = [queries is not None, *[keys is not None] * 4]
        return ours.run_backward(grad, *inputs, out, lse, *sizes, needed=needed, plan_queries=queries, plan_keys=keys)

    return {
        "forward": lambda plan: ours.run_forward(*inputs, *sizes, plan=plan),
        "backward_queries": lambda plan: backward(queries=plan),
        "backward_keys": lambda plan: backward(keys=plan),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", nargs=2, type=int, default=(50, 84), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--groups", type=int, default=3)
    parser.add_argument("--keys", type=int, default=0, help="as many as queries by default")
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--deterministic", action="store_true", help="the table's gradient in integers")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("tune_triton.py measures on a GPU, and torch.cuda.is_available() is False here.")
    from triton import testing  # here, so that the line above is what a machine without Triton sees

    torch.manual_seed(0)
    torch.use_deterministic_algorithms(options.deterministic)
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {options.dtype}, batch {options.batch}, "
        f"{options.heads} heads, {options.groups} groups, d = {options.dim}, {options.size[0]} x {options.size[1]} "
        f"queries, {options.keys or 'as many'} keys; median times, backward with its reductions in PyTorch\n"
    )
    print("| kernel | block of queries | block of keys | warps | stages | ms |")
    print("|---|---|---|---|---|---|")
    best = []
    for name, run in kernels(options).items():
        current = ours.launch(name, options.dim, getattr(torch, options.dtype))
        times: dict[ours.Launch, float] = {}
        for plan in dict.fromkeys([current, *candidates()]):
            try:
                times[plan] = testing.do_bench(lambda run=run, plan=plan: run(plan), return_mode="median")
            except Exception as error:  # a block that does not fit; Triton's classes differ between versions
                print(f"| {name} | " + " | ".join(map(str, plan)) + f" | {type(error).__name__} |")
                continue
            print(f"| {name} | " + " | ".join(map(str, plan)) + f" | {times[plan]:.3f} |", flush=True)
        fastest = min(times, key=times.__getitem__)
        before = f"{times[current]:.3f} ms" if current in times else "failed"
        best.append(f"{name}: {times[fastest]:.3f} ms with {fastest}; launch() has {current}, {before}")
    print("\n" + "\n".join(best))


if __name__ == "__main__":
    main()
