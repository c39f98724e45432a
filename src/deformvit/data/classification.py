"""Classification images from folders and parquet files."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from deformvit.data.images import IMAGE_SUFFIXES, Transform, decode
from deformvit.data.shards import ParquetShards, TarShards, has_tar, open_tar
from deformvit.errors import DataError, UnreadableImage, UserError

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLES = Path(__file__).parent / "samples"
SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid", "test")}
"""Names that a split may have, in order of preference."""
IN_MEMORY = 2 << 30
"""Parquet files of so many bytes in all are read into memory; larger sets are read row group by row group."""
CACHE = Path.home() / ".cache" / "deformvit"
"""Where shards from URLs are kept."""


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
        image, label, names = _columns(table.schema, self.name)
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
        if not names and not pa.types.is_integer(table[label].type):
            raise DataError(f"{self.name}: column {label} must hold class numbers, found {table[label].type}")
        self.classes: list[str] = names or [str(i) for i in range(max(self.labels, default=-1) + 1)]
        for row, value in enumerate(self.labels):
            if not isinstance(value, int) or not 0 <= value < len(self.classes):
                raise DataError(f"{self.name}: row {row} has label {value}, expected 0 to {len(self.classes) - 1}")
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        data = self.images[index].as_py()
        if data is None:
            raise UnreadableImage(f"{self.name}: row {index} has no image bytes")
        image = decode(data, f"{self.name}, row {index}")
        return (self.transform(image) if self.transform else image), self.labels[index]


def _columns(schema: pa.Schema, name: str) -> tuple[str, str, list[str] | None]:
    """Names of the image column and the label column, and names of the classes if the file has them."""
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    columns = []
    for kind, usual_names in (("Image", ("image", "img")), ("ClassLabel", ("label", "fine_label", "labels"))):
        declared = [column for column, feature in features.items() if feature.get("_type") == kind]
        column = next((column for column in (*declared, *usual_names) if column in schema.names), None)
        if column is None:
            raise DataError(f"{name}: no {kind} column among {', '.join(schema.names)}")
        columns.append(column)
    return columns[0], columns[1], features.get(columns[1], {}).get("names")


def open_parquet(
    files: list[Path], split: str, transform: Transform | None, in_memory: int = IN_MEMORY
) -> ParquetImages | ParquetShards:
    """Parquet files of a split: in memory up to ``in_memory`` bytes, otherwise row group by row group."""
    if sum(file.stat().st_size for file in files) <= in_memory:
        return ParquetImages(files, split, transform)
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        image, label, names = _columns(pq.read_schema(files[0]), str(files[0]))
        if names is None:
            largest = max(max(pq.read_table(file, columns=[label])[label].to_pylist(), default=-1) for file in files)
            names = [str(i) for i in range(largest + 1)]
    except (pa.ArrowInvalid, OSError, TypeError) as error:
        raise DataError(f"{files[0]}: not readable as parquet images with labels ({error})") from error
    return ParquetShards(files, image, label, names, transform)


def load_file(path: str) -> Image.Image:
    """Loader of an image folder."""
    return decode(Path(path), path)


def _is_image(path: str) -> bool:
    """Whether a file is taken for an image; hidden ones, such as macOS's ``._1.jpg``, are not."""
    name = Path(path).name
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


class FolderImages(ImageFolder):
    """torchvision's image folder without hidden files and folders, with errors that name the file.

    Args:
        root: a folder with a folder for each class.
        transform: applied to the decoded RGB image.
    """

    samples: list[tuple[str, int]]
    """Path and label of every image."""
    notice = ""
    """Which share is held out for validation, in one line; empty where the folder has a validation split."""

    def __init__(self, root: Path, transform: Transform | None = None) -> None:
        try:
            super().__init__(str(root), transform=transform, loader=load_file, is_valid_file=_is_image)
        except OSError as error:
            raise DataError(f"{root}: not a folder of class folders with images ({error})") from error

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        """Names of the class folders and their labels, in alphabetical order."""
        classes = [folder.name for folder in _class_folders(Path(directory))]
        if not classes:
            raise FileNotFoundError("it holds no folders")
        return classes, {name: label for label, name in enumerate(classes)}

    def keep(self, split: str, holdout: float, seed: int) -> None:
        """Leave one of the two parts of the folder: "val", the images that are held out, or "train", the others.

        Images of each class are ranked by a hash of the seed and their path within the folder, so the parts depend
        neither on the order of listing nor on where the folder is, nor on what other classes hold.

        Args:
            split: "train" or "val".
            holdout: share of each class that is held out, above 0. Below 1 at least one image of a class stays in
                training, and at least one of two or more is held out; 1 takes all images for validation.
            seed: chooses the images.

        Raises:
            DataError: no class has two images.
        """
        by_class: dict[int, list[str]] = {}
        for path, label in self.samples:
            by_class.setdefault(label, []).append(path)
        held: set[str] = set()
        for paths in by_class.values():
            count = len(paths) if holdout == 1 else min(max(round(holdout * len(paths)), 1), len(paths) - 1)
            held.update(sorted(paths, key=lambda path: self._rank(path, seed))[:count])
        if not held:
            raise DataError(f"{self.root}: no class has two images, so none can be held out for validation")
        self.notice = (
            f"{self.root}: {len(held)} of {len(self.samples)} images are held out for validation, as it has no "
            f"validation split (holdout {holdout}, seed {seed})"
        )
        self.samples = self.imgs = [sample for sample in self.samples if (sample[0] in held) == (split == "val")]
        self.targets = [label for _, label in self.samples]

    def _rank(self, path: str, seed: int) -> bytes:
        name = Path(path).relative_to(self.root).as_posix()
        return hashlib.sha256(f"{seed} {name}".encode(errors="surrogateescape")).digest()


def _class_folders(root: Path) -> list[Path]:
    folders = (path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(folders, key=lambda folder: folder.name)


Images = ParquetImages | ParquetShards | TarShards | FolderImages


def label_counts(images: Images) -> list[int] | None:
    """Images of each class; None where counting them would read the images' files."""
    if isinstance(images, FolderImages):
        labels = images.targets
    elif isinstance(images, ParquetImages):
        labels = images.labels
    else:
        return None
    found = Counter(labels)
    return [found[label] for label in range(len(images.classes))]


def open_split(
    root: str,
    split: str,
    transform: Transform | None = None,
    cache: Path = CACHE,
    holdout: float = 0.0,
    seed: int = 0,
) -> Images:
    """The images of a split ("train" or "val"), with ``classes``.

    Args:
        root: ``"sample"``, a parquet file with a column ``split``, a folder of parquet files or WebDataset's tar shards
            named after their split, the URL of such shards, a folder with a folder per split, or a folder of class
            folders, whose images are for training.
        cache: where shards from a URL are kept.
        holdout: share of each class that is validation and not training, where an image folder has no validation
            split. Both splits must be opened with the same ``holdout`` and ``seed``, see ``FolderImages.keep``.
        seed: chooses the images that are held out.

    Raises:
        DataError: no such images, with what was looked for.
        UserError: ``holdout`` is not at least 0 and below 1; for "val" it may be 1, of an evaluation without training.
    """
    if not 0 <= holdout < 1 and not (split == "val" and holdout == 1):
        raise UserError(f"holdout must be at least 0 and below 1, got {holdout}")
    if root.startswith(("http://", "https://")):
        shards = open_tar(root, split, SPLITS[split], transform, cache)
        assert shards is not None  # a URL has shards or raises
        return shards
    path = SAMPLES / "fashion_mnist.parquet" if root == "sample" else Path(root)
    if not path.exists():
        raise DataError(f"data.root {root!r}: no such file or folder")
    images: Images | None
    if path.is_file():
        images = ParquetImages([path], split, transform)
    elif has_tar(path):
        images = open_tar(str(path), split, SPLITS[split], transform, cache)
    else:
        images = _open_folder(path, split, transform, holdout, seed)
    if images is None:
        looked = ", ".join(f"{name}/, {name}*.parquet or {name}*.tar" for name in SPLITS[split])
        hint = "; of class folders, holdout can hold out a share" if split == "val" and holdout == 0 else ""
        raise DataError(f"{path}: no {split} images; looked for {looked}{hint}")
    if len(images) == 0:
        raise DataError(f"{path}: the {split} split is empty")
    return images


def _open_folder(
    path: Path, split: str, transform: Transform | None, holdout: float, seed: int
) -> ParquetImages | ParquetShards | FolderImages | None:
    """A split of a folder, or None if it has none."""
    training, validation = _find(path, "train"), _find(path, "val")
    if isinstance(training, Path) and validation is None and holdout > 0:
        images = FolderImages(training, transform)
        images.keep(split, holdout, seed)
        return images
    source = training if split == "train" else validation
    if isinstance(source, list):
        return open_parquet(source, split, transform)
    return FolderImages(source, transform) if source else None


def _find(path: Path, split: str) -> list[Path] | Path | None:
    """Parquet files of a split, or the folder with its class folders."""
    for name in SPLITS[split]:
        files = [f for folder in (path, path / "data") for f in sorted(folder.glob("*.parquet")) if _names(f, name)]
        files = files or sorted((path / name).glob("*.parquet"))
        if files:
            return files
        if (path / name).is_dir():
            return path / name
    return path if split == "train" and _has_classes(path) else None


def _has_classes(path: Path) -> bool:
    """Whether a folder has class folders rather than folders of splits."""
    folders = _class_folders(path)
    if {folder.name.lower() for folder in folders} & {name for names in SPLITS.values() for name in names}:
        return False
    return any(_is_image(str(file)) for folder in folders for file in folder.rglob("*"))


def _names(file: Path, split: str) -> bool:
    """Whether a parquet file is named after a split: train.parquet, train-00000-of-00002.parquet, train_0.parquet."""
    return file.stem.split("-")[0].split("_")[0] == split
