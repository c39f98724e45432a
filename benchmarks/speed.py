"""Forward time of models on this machine, measured in turn in one run.

python benchmarks/speed.py --models dat_tiny swin_tiny_patch4_window7_224 --batch 8 --rounds 15
python benchmarks/speed.py --models dat_tiny --features --batch 1 --size 800 1344 --rounds 3   # one model: its memory
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import time

import timm
import torch

import deformvit  # noqa: F401 - registers the models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", default=["dat_tiny", "swin_tiny_patch4_window7_224"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", nargs=2, type=int, default=(224, 224), metavar=("H", "W"))
    parser.add_argument("--features", action="store_true", help="feature maps of all stages instead of logits")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    device = torch.device(options.device)
    kwargs = {"features_only": True} if options.features else {}
    size = tuple(options.size)
    models = {}
    for name in options.models:
        sized = {"img_size": size} if name.startswith("swin") and size != (224, 224) else {}  # Swin's is fixed
        models[name] = timm.create_model(name, **kwargs, **sized).eval().to(device)
    x = torch.randn(options.batch, 3, *size, device=device)
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for round_ in range(options.rounds + 2):  # two rounds of warm-up
            for name, model in models.items():
                began = time.perf_counter()
                model(x)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if round_ >= 2:
                    times[name].append(time.perf_counter() - began)
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, timm {timm.__version__}"
    )
    print(f"forward, batch {options.batch}, {size[0]} x {size[1]}, median of {options.rounds} rounds in turn\n")
    print("| model | ms an image | fastest | slowest |")
    print("|---|---|---|---|")
    for name, seconds in times.items():
        per_image = [1000 * s / options.batch for s in seconds]
        print(f"| {name} | {statistics.median(per_image):.1f} | {min(per_image):.1f} | {max(per_image):.1f} |")
    if len(models) == 1:
        print(f"\npeak of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
