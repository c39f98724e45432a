"""Make the embedded sample from the original Fashion-MNIST files: the first 600 + 100 images of each class.

    python benchmarks/make_fashion_sample.py FOLDER src/deformvit/data/samples/fashion_mnist.parquet

FOLDER holds train-images-idx3-ubyte.gz and so on (Debian: package dataset-fashion-mnist).
"""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip


def read(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    images = gzip.decompress((folder / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


def encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def main(folder: Path, target: Path) -> None:
    rows: list[dict[str, object]] = []
    for split, prefix, count in (("train", "train", 600), ("test", "t10k", 100)):
        images, labels = read(folder, prefix)
        chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:count] for c in range(10)]))
        for i in chosen:
            image = {"bytes": encode(images[i]), "path": f"{split}/{i:05d}.png"}
            rows.append({"image": image, "label": int(labels[i]), "split": split})
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": CLASSES}}
    table = pa.Table.from_pylist(rows)
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, target, compression="zstd")
    print(f"{target}: {len(rows)} images, {target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
