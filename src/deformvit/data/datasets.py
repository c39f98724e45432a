"""Classification images from folders and parquet files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from deformvit.errors import UserError

Transform = Callable[[Image.Image], Any]
SAMPLES = Path(__file__).parent / "samples"
SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid", "test")}
"""Names that a split may have, in order of preference."""


class DataError(UserError):
    """Images or labels cannot be read; the message names the file and what was expected."""


def decode(source: bytes | Path, name: str) -> Image.Image:
    """Decode an image into RGB.

    Raises:
        DataError: naming ``name``, when it is no image or a damaged one.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: not a readable image ({error})") from error


class ParquetImages(Dataset[tuple[Any, int]]):
    """Images in the Hugging Face ``datasets`` parquet format: an image column and a class label column.

    Args:
        files: parquet files, read into memory undecoded.
        split: value of the column ``split`` to keep, if the files have one.
        transform: applied to the decoded RGB image.
    """

    def __init__(self, files: list[Path], split: str, transform: Transform | None = None) -> None:
        try:
            table = pa.concat_tables([pq.read_table(file) for file in files])
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{', '.join(map(str, files))}: not readable as parquet ({error})") from error
        self.name = str(files[0]) if len(files) == 1 else str(files[0].parent)
        features = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
        features = features.get("info", {}).get("features", {})
        image, label = self._column(table, features, "Image"), self._column(table, features, "ClassLabel")
        if "split" in table.column_names:
            table = table.filter(pc.is_in(table["split"], pa.array(SPLITS[split])))
        images = table[image].combine_chunks()
        self.images = images.field("bytes") if pa.types.is_struct(images.type) else images
        self.labels: list[int] = table[label].to_pylist()
        known = features.get(label, {}).get("names")
        self.classes: list[str] = known or [str(i) for i in range(max(self.labels, default=-1) + 1)]
        for row, value in enumerate(self.labels):
            if not isinstance(value, int) or not 0 <= value < len(self.classes):
                raise DataError(f"{self.name}: row {row} has label {value}, expected 0 to {len(self.classes) - 1}")
        self.transform = transform

    def _column(self, table: pa.Table, features: dict[str, Any], kind: str) -> str:
        declared = [name for name, feature in features.items() if feature.get("_type") == kind]
        usual = ("image", "img") if kind == "Image" else ("label", "fine_label", "labels")
        for name in (*declared, *usual):
            if name in table.column_names:
                return name
        raise DataError(f"{self.name}: no {kind} column among {', '.join(table.column_names)}")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        data = self.images[index].as_py()
        if data is None:
            raise DataError(f"{self.name}: row {index} has no image bytes")
        image = decode(data, f"{self.name}, row {index}")
        return (self.transform(image) if self.transform else image), self.labels[index]


class FolderImages(ImageFolder):
    """torchvision's image folder, with errors that name the file."""

    def __init__(self, root: Path, transform: Transform | None = None) -> None:
        try:
            super().__init__(str(root), transform=transform, loader=lambda path: decode(Path(path), path))
        except (FileNotFoundError, OSError) as error:
            raise DataError(f"{root}: not a folder of class folders with images ({error})") from error


def open_split(root: str, split: str, transform: Transform | None = None) -> ParquetImages | FolderImages:
    """The images of a split ("train" or "val"), with ``classes``.

    Args:
        root: ``"sample"``, a parquet file with a column ``split``, a folder of parquet files named after their split,
            or a folder with a folder per split.

    Raises:
        DataError: nothing there, with what was looked for.
    """
    path = SAMPLES / "fashion_mnist.parquet" if root == "sample" else Path(root)
    if path.is_file():
        images = ParquetImages([path], split, transform)
        if len(images) == 0:
            raise DataError(f"{path}: no rows of split {split!r}")
        return images
    if not path.is_dir():
        raise DataError(f"data.root {root!r}: no such file or folder")
    for name in SPLITS[split]:
        if (path / name).is_dir():
            return FolderImages(path / name, transform)
        for folder in (path, path / "data"):
            files = sorted(f for f in folder.glob("*.parquet") if f.stem.split("-")[0].split("_")[0] == name)
            if files:
                return ParquetImages(files, split, transform)
    looked = ", ".join(f"{name}/ or {name}*.parquet" for name in SPLITS[split])
    raise DataError(f"{path}: no {split} images; looked for {looked}")
