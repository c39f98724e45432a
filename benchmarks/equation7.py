"""Equation 7, the complexity of deformable attention, beside a count of the layer itself.

python benchmarks/equation7.py
"""

from __future__ import annotations

from deformvit import DeformableAttention
from deformvit.paper.complexity import count_complexity


def equation_7(height: int, width: int, keys: int, channels: int, kernel: int) -> tuple[int, int]:
    """Multiply-adds of deformable attention without and of the offset network, by the paper's formula."""
    area = height * width
    attention = 2 * area * keys * channels + 2 * area * channels**2 + 2 * keys * channels**2
    return attention, (kernel**2 + 2) * keys * channels


def main() -> None:
    attention, offsets = equation_7(14, 14, 49, 384, 5)
    print("Stage 3 of Swin-T: H = W = 14, 49 keys, C = 384, k = 5")
    print(f"  equation 7: {attention / 1e6:.2f} M + offset network {offsets / 1e6:.2f} M (the paper prints 5.08 M)")
    cost = count_complexity(lambda: DeformableAttention(384, 12, 1, stride=2, position="none"), (384, 14, 14))
    print(
        f"  the layer : {cost.products / 1e6:.2f} M in products, one group, sampling {cost.sampling / 1e6:.2f} M more"
    )


if __name__ == "__main__":
    main()
