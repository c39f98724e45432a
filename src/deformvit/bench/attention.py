"""Implementations of deformable attention at the sizes of stage 3 of DAT, for several image sizes."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from deformvit.bench.measure import DTYPES, machine, peak_mib, seconds
from deformvit.bench.worker import Worker
from deformvit.devices import pick_device
from deformvit.errors import UserError
from deformvit.ops import deform_attn, grid
from deformvit.ops.deformable import IMPLEMENTATIONS, KERNELS, Impl

BASELINES = ("no bias", "released")


@dataclass(frozen=True)
class Case:
    """Stage 3 of a model at an image size: a query for 16 x 16 pixels, as many keys, heads of 32 channels."""

    model: str
    image: tuple[int, int]
    heads: int
    groups: int

    @property
    def map_hw(self) -> tuple[int, int]:
        return self.image[0] // 16, self.image[1] // 16

    @property
    def tokens(self) -> int:
        return math.prod(self.map_hw)


WIDTHS = {"T": (12, 3), "B": (16, 4)}  # heads and groups of stage 3 of DAT-T and DAT-B, Table 1
SIZES = ((224, 224), (384, 384), (512, 512), (800, 1344))


def cases(models: Sequence[str], sizes: Sequence[tuple[int, int]]) -> list[Case]:
    """Every model at every image size.

    Raises:
        UserError: a size that is not a multiple of 16.
    """
    for height, width in sizes:
        if height % 16 or width % 16 or min(height, width) < 16:
            raise UserError(f"sizes: image sides must be multiples of 16, got {height} x {width}")
    return [Case(model, size, *WIDTHS[model]) for model in models for size in sizes]


def inputs(case: Case, batch: int, dtype: torch.dtype, device: torch.device) -> tuple[list[Tensor], tuple[int, int]]:
    """q, k, v, positions and table, and the queries' map. Features are stored token by token, as in a layer."""
    torch.manual_seed(0)
    height, width = case.map_hw
    q, k, v = (
        torch.randn(batch, case.tokens, case.heads, 32, device=device, dtype=dtype).transpose(1, 2) for _ in range(3)
    )
    pos = torch.rand(batch, case.groups, case.tokens, 2, device=device) * 2 - 1
    table = torch.randn(case.heads, 2 * height - 1, 2 * width - 1, device=device)
    return [q, k, v, pos, table], (height, width)


def implementation(name: str) -> Callable[..., Tensor]:
    """The implementation or baseline of that name; all have the same signature."""
    if name == "no bias":
        return no_bias
    if name == "released":
        return released
    return lambda *tensors, query_hw: deform_attn(*tensors, query_hw=query_hw, impl=cast(Impl, name))


def no_bias(q: Tensor, k: Tensor, v: Tensor, *_: Tensor, query_hw: tuple[int, int]) -> Tensor:  # noqa: ARG001
    """PyTorch's attention without the position bias: a lower bound."""
    return F.scaled_dot_product_attention(q, k, v)


def released(q: Tensor, k: Tensor, v: Tensor, pos: Tensor, table: Tensor, *, query_hw: tuple[int, int]) -> Tensor:
    """The steps of the authors' code: einsum, a tensor of all displacements, grid_sample on an image of queries x keys,
    softmax, einsum."""
    (batch, heads, queries, dim), (groups, keys) = q.shape, pos.shape[1:3]
    q, k, v = (x.reshape(batch * heads, -1, dim) for x in (q, k, v))
    logits = torch.einsum("bqc,bnc->bqn", q, k).mul(dim**-0.5)
    points = grid.query_points(query_hw, device=pos.device, dtype=pos.dtype).reshape(1, queries, 1, 2)
    displacement = (points - pos.reshape(batch * groups, 1, keys, 2)).mul(0.5)
    tables = table[None].expand(batch, -1, -1, -1).reshape(batch * groups, heads // groups, *table.shape[1:])
    bias = grid.sample(tables, displacement).reshape(batch * heads, queries, keys)
    weights = F.softmax(logits + bias, dim=2)
    return torch.einsum("bqn,bnc->bqc", weights, v).reshape(batch, heads, queries, dim)


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds and MiB of one implementation on one case: forward, and forward + backward."""
    device, dtype = torch.device(job["device"]), DTYPES[job["dtype"]]
    case = Case(**{**job["case"], "image": tuple(job["case"]["image"])})
    tensors, query_hw = inputs(case, job["batch"], dtype, device)
    call = implementation(job["name"])
    if job["compiled"]:
        call = torch.compile(call)
    warmup, rounds = 1 + 2 * bool(job["compiled"]), job["rounds"]

    def forward() -> Tensor:
        return call(*tensors, query_hw=query_hw)

    result: dict[str, Any] = {}
    before = peak_mib(device)
    with torch.inference_mode():
        times = [seconds(forward, device) for _ in range(warmup + rounds)][warmup:]
    result["forward"] = {"seconds": statistics.median(times), "mib": peak_mib(device) - before}
    if job["backward"]:
        for tensor in tensors:
            tensor.requires_grad_()
        gradient = torch.ones_like(tensors[0])

        def both() -> None:
            torch.autograd.grad(forward(), tensors, gradient, allow_unused=True)

        times = [seconds(both, device) for _ in range(warmup + rounds)][warmup:]
        result["backward"] = {"seconds": statistics.median(times), "mib": peak_mib(device) - before}
    return result


def start_worker(job: dict[str, Any]) -> Callable[[str], dict[str, Any]]:
    """The worker's side: responds to any request with :func:`measure`."""
    return lambda _request: measure(job)


def run_attention(
    models: Sequence[str] = ("T", "B"),
    sizes: Sequence[tuple[int, int]] = SIZES,
    implementations: Sequence[str] = (),
    *,
    batch: int = 1,
    dtype: str = "float32",
    device: str = "auto",
    backward: bool = True,
    compiled: bool = False,
    rounds: int = 5,
) -> dict[str, Any]:
    """Measure implementations and baselines on every case.

    Args:
        models: names in ``WIDTHS``.
        sizes: (H, W) of images, multiples of 16.
        implementations: names; by default the baselines and the implementations that can run on the device.
        compiled: measure the reference under torch.compile too.

    Returns:
        Machine, settings and rows, for ``deformvit.bench.report``.

    Raises:
        UserError: an unknown implementation, a device that cannot be used, or a size that is not a multiple of 16.
    """
    target = pick_device(device)
    names = list(implementations) or _default(target)
    all_names = [*BASELINES, *IMPLEMENTATIONS]
    for name in names:
        if name not in all_names:
            raise UserError(f"unknown implementation {name!r}; expected some of {', '.join(all_names)}")
    jobs: list[dict[str, Any]] = [
        {
            "case": asdict(case), "name": name, "compiled": variant, "batch": batch, "dtype": dtype,
            "device": str(target), "backward": backward, "rounds": rounds,
        }
        for case in cases(models, sizes)
        for name in names
        for variant in ((False, True) if compiled and name == "reference" else (False,))
    ]  # fmt: skip
    rows = []
    progress = tqdm(jobs, unit="measurement", disable=not sys.stderr.isatty())
    for job in progress:
        height, width = job["case"]["image"]
        label = f"{job['name']}, compiled" if job["compiled"] else job["name"]
        progress.set_description(f"{label}, {job['case']['model']} at {height} x {width}")
        tokens = (height // 16) * (width // 16)
        row = {"model": job["case"]["model"], "image": [height, width], "tokens": tokens, "name": label}
        with Worker(start_worker, job) as worker:
            rows.append(row | worker.request("measure"))
    settings = {"batch": batch, "dtype": dtype, "rounds": rounds, "backward": backward}
    return {"kind": "attention", "machine": machine(target), "settings": settings, "rows": rows}


def _default(device: torch.device) -> list[str]:
    """The baselines, the implementations in PyTorch, and the kernels for the device if they can run."""
    names = [*BASELINES, "reference", "tiled"]
    name, can_run = KERNELS.get(device.type, ("", None))
    if can_run is not None:
        tensors, query_hw = inputs(Case("T", (32, 32), *WIDTHS["T"]), 1, torch.float32, device)
        q, k, v, pos, table = tensors
        if can_run(q, k, v, pos, table, query_hw, 0.0) is None:
            names.append(name)
    return names
