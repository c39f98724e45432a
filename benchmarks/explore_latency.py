"""How long the page of `deformvit explore` waits for its server: a click, another offset scale, a new image.

    python benchmarks/explore_latency.py --model dat_tiny

Medians over layers and queries, through the server's own routes without a network.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import timm
import torch
from starlette.testclient import TestClient

from deformvit import ClassifierDescription, save_model
from deformvit.data.classification import SAMPLES
from deformvit.explore.server import Session, application


def seconds(client: TestClient, path: str) -> float:
    """One question."""
    started = time.perf_counter()
    client.get(path).raise_for_status()
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="dat_tiny", help="a name registered with timm; its weights do not matter")
    name = parser.parse_args().model
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        classes = [str(i) for i in range(1000)]
        save_model(path, timm.create_model(name), ClassifierDescription(name=name, classes=classes))
        session = Session([str(path)], "cpu")
    client = TestClient(application(session))
    image = session.open(SAMPLES / "cat.jpg", "cat.jpg")
    view = f"/api/view?image={image}&model=0"
    first = seconds(client, view)
    layers = client.get(view).json()["layers"]
    clicks = [
        seconds(client, f"/api/attention?image={image}&model=0&layer={i}&query={query}")
        for query in range(0, 48, 4)
        for i in range(len(layers))
    ]
    scales = [seconds(client, f"{view}&scale={i / 20}") for i in range(1, 16)]
    print(f"{name}, {torch.get_num_threads()} threads: new image {1000 * first:.0f} ms")
    print(f"click: median {1000 * statistics.median(clicks):.0f} ms, slowest {1000 * max(clicks):.0f} ms")
    print(f"offset scale: median {1000 * statistics.median(scales):.0f} ms")


if __name__ == "__main__":
    main()
