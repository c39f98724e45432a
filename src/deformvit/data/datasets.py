"""Classification images from folders and parquet files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from deformvit.errors import DataError, UnreadableImage

if TYPE_CHECKING:
    import pyarrow as pa

Transform = Callable[[Image.Image], Any]
SAMPLES = Path(__file__).parent / "samples"
SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid", "test")}
"""Names that a split may have, in order of preference."""


def decode(source: bytes | Path, name: str) -> Image.Image:
    """Decode an image into RGB.

    Raises:
        UnreadableImage: naming ``name``, when it is no image or a damaged one.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"{name}: not a readable image ({error})") from error


class ParquetImages(Dataset[tuple[Any, int]]):
    """Images in the Hugging Face ``datasets`` parquet format: an image column and a class label column.

    Args:
        files: parquet files, read into memory undecoded.
        split: value of the column ``split`` to keep, if the files have one.
        transform: applied to the decoded RGB image.
    """

    def __init__(self, files: list[Path], split: str, transform: Transform | None = None) -> None:
        import pyarrow as pa  # here, as predicting from image files does not need it
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        try:
            table = pa.concat_tables([pq.read_table(file) for file in files])
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{', '.join(map(str, files))}: not readable as parquet ({error})") from error
        self.name = str(files[0]) if len(files) == 1 else str(files[0].parent)
        features = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
        features = features.get("info", {}).get("features", {})
        image, label = self._column(table, features, "Image"), self._column(table, features, "ClassLabel")
        if "split" in table.column_names:
            present = set(table["split"].unique().to_pylist())
            table = table.filter(
                pc.equal(table["split"], next((name for name in SPLITS[split] if name in present), ""))
            )
        images = table[image]
        if pa.types.is_struct(images.type):
            images = pc.struct_field(images, "bytes")
        self.images = images.cast(pa.large_binary()).combine_chunks()  # 64-bit offsets: more than 2 GiB of images
        self.labels: list[int] = table[label].to_pylist()
        known = features.get(label, {}).get("names")
        if not known and not pa.types.is_integer(table[label].type):
            raise DataError(f"{self.name}: column {label} must hold class numbers, found {table[label].type}")
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
            raise UnreadableImage(f"{self.name}: row {index} has no image bytes")
        image = decode(data, f"{self.name}, row {index}")
        return (self.transform(image) if self.transform else image), self.labels[index]


def load_file(path: str) -> Image.Image:
    """Loader of an image folder."""
    return decode(Path(path), path)


class FolderImages(ImageFolder):
    """torchvision's image folder, with errors that name the file."""

    def __init__(self, root: Path, transform: Transform | None = None) -> None:
        try:
            super().__init__(str(root), transform=transform, loader=load_file)
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
    if not path.exists():
        raise DataError(f"data.root {root!r}: no such file or folder")
    images: ParquetImages | FolderImages | None = None
    if path.is_file():
        images = ParquetImages([path], split, transform)
    else:
        for name in SPLITS[split]:
            files = [f for folder in (path, path / "data") for f in sorted(folder.glob("*.parquet")) if _names(f, name)]
            files = files or sorted((path / name).glob("*.parquet"))
            if files:
                images = ParquetImages(files, split, transform)
            elif (path / name).is_dir():
                images = FolderImages(path / name, transform)
            if images is not None:
                break
    if images is None:
        looked = ", ".join(f"{name}/ or {name}*.parquet" for name in SPLITS[split])
        raise DataError(f"{path}: no {split} images; looked for {looked}")
    if len(images) == 0:
        raise DataError(f"{path}: the {split} split is empty")
    return images


def _names(file: Path, split: str) -> bool:
    """Whether a parquet file is named after a split: train.parquet, train-00000-of-00002.parquet, train_0.parquet."""
    return file.stem.split("-")[0].split("_")[0] == split
