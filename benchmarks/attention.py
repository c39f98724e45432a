"""Implementations of deformable attention at detection resolution: time, and memory over what its inputs take.

python benchmarks/attention.py --size 50 84 --heads 12 --groups 3

Each implementation runs in a process of its own, one after the other, so that peaks of memory are its own; "no bias" is
PyTorch's attention without the position bias, the limit to come close to.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

from deformvit.ops import deform_attn
from deformvit.ops.deform_attn import IMPLEMENTATIONS


def peak() -> float:
    """MiB that the process has used at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    height, width = options.size
    shape = 1, options.heads, height * width, 32
    q, k, v = (torch.randn(shape, requires_grad=options.backward) for _ in range(3))
    pos = (torch.rand(1, options.groups, height * width, 2) * 2 - 1).requires_grad_(options.backward)
    table = torch.randn(options.heads, 2 * height - 1, 2 * width - 1, requires_grad=options.backward)
    before, seconds = peak(), []
    for _ in range(options.rounds):
        began = time.perf_counter()
        if options.child == "no bias":
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = deform_attn(q, k, v, pos, table, query_hw=(height, width), impl=options.child)
        if options.backward:
            out.sum().backward()
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"seconds": statistics.median(seconds), "mib": peak() - before}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", nargs=2, type=int, default=(50, 84), metavar=("H", "W"))
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--groups", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backward", action="store_true")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return measure(options)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.size[0]} x {options.size[1]}, fp32\n"
    )
    print("| implementation | forward (s) | MiB | forward + backward (s) | MiB |")
    print("|---|---|---|---|---|")
    for name in ("no bias", *IMPLEMENTATIONS):
        cells = []
        for extra in ([], ["--backward"]):
            command = [sys.executable, __file__, *sys.argv[1:], *extra, "--child", name]
            result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            cells += [f"{result['seconds']:.2f}", f"{result['mib']:.0f}"]
        print("| " + " | ".join([name, *cells]) + " |")
    return None


if __name__ == "__main__":
    main()
