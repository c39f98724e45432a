"""Parameters and multiply-adds of the registered models beside the paper's (Table 2).

    python benchmarks/complexity.py

Counted by torch's FlopCounterMode on shapes alone (meta device), attention as the matrix products it is; bilinear
sampling, which that counter leaves out, is counted as four multiply-adds a sampled value and shown apart.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import deformvit  # noqa: F401 - registers the models

PAPER = {  # parameters in millions, multiply-adds in billions
    "dat_tiny": (28.319138, 4.6), "dat_small": (49.700402, 9.0), "dat_base": (87.881632, 15.8),
    "dat_base_384": (88.178272, 49.8),
}  # fmt: skip


def _sampling(_x: Any, _grid: Any, *_args: Any, out_shape: Any = None, **_kwargs: Any) -> int:
    values = 1
    for size in out_shape:
        values *= size
    return 8 * values  # four multiply-adds


def multiply_adds(name: str, **arguments: Any) -> tuple[int, float, float]:
    """Parameters, and billions of multiply-adds without and of bilinear sampling, for one image of the nominal size."""
    with torch.device("meta"):
        model = timm.create_model(name, **arguments).eval()
        x = torch.empty(1, 3, *model.img_size)
    operators = {torch.ops.aten.grid_sampler_2d: _sampling}
    counter = FlopCounterMode(display=False, custom_mapping=operators)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(x)
    counts = counter.get_flop_counts()["Global"]
    sampling = sum(count for operator, count in counts.items() if "grid_sampler" in str(operator))
    total = sum(counts.values())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return parameters, (total - sampling) / 2e9, sampling / 2e9


def equation_7(height: int, width: int, keys: int, channels: int, kernel: int) -> tuple[int, int]:
    """Multiply-adds of deformable attention without and of the offset network, by the paper's formula."""
    area = height * width
    attention = 2 * area * keys * channels + 2 * area * channels**2 + 2 * keys * channels**2
    return attention, (kernel**2 + 2) * keys * channels


def main() -> None:
    attention, offsets = equation_7(14, 14, 49, 384, 5)
    print(f"Equation 7, stage 3 of Swin-T: {attention / 1e6:.2f} M + offset network {offsets / 1e6:.2f} M\n")
    print("| model | parameters | paper | multiply-adds (G) | paper | bilinear sampling (G) |")
    print("|---|---|---|---|---|---|")
    for name in (*PAPER, "dat_nano"):
        count, products, sampling = multiply_adds(name)
        millions, billions = PAPER.get(name, (None, None))
        published = f"{millions * 1e6:,.0f}" if millions else "-"
        print(f"| {name} | {count:,} | {published} | {products:.3f} | {billions or '-'} | {sampling:.3f} |")


if __name__ == "__main__":
    main()
