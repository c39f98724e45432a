"""Do deformed points move with the object? Share of points that lie on the garment, on the embedded test images.

    python benchmarks/points_follow.py runs/demo/best.safetensors

For every deformable layer: the share of reference points on the garment (pixels brighter than a tenth), of deformed
points, and, as a control, of the points that the model deformed for *another* test image. Only the gap between the last
two tells that points depend on what is in the image; the gap to the first may be a move that is the same for all.
"""

from __future__ import annotations

import sys

import torch

from deformvit import load, record
from deformvit.data import open_split
from deformvit.ops import grid


def main(model_file: str) -> None:
    predictor = load(model_file, device="cpu")
    images = open_split("sample", "val")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:500].tolist()
    batch = torch.stack([predictor.view(images[i][0]) for i in order])
    hw = batch.shape[-2], batch.shape[-1]
    garment = (batch.mean(1, keepdim=True) > 0.1).float()
    with torch.inference_mode(), record(predictor.model) as trace:
        predictor.model(torch.stack([predictor.transform(images[i][0]) for i in order]))

    def share(pixels: torch.Tensor) -> float:  # (B, points, 2) -> percent on the garment, outside counted as off it
        positions = (pixels - 0.5) / (hw[0] - 1) * 2 - 1
        return 100 * grid.sample(garment, positions[:, None]).round().mean().item()

    print("| layer | reference | deformed | deformed for another image | mean offset (pixels) |")
    print("|---|---|---|---|---|")
    for layer in trace.deformable:
        start, moved = layer.points()
        deformed = layer.pixels(moved, hw).flatten(1, 3)
        reference = layer.pixels(start.expand_as(moved), hw).flatten(1, 3)
        length = (deformed - reference).norm(dim=-1).mean().item()
        print(
            f"| {layer.label} | {share(reference):.1f} % | {share(deformed):.1f} % "
            f"| {share(deformed.roll(1, 0)):.1f} % | {length:.2f} |"
        )


if __name__ == "__main__":
    main(sys.argv[1])
