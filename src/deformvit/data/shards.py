"""Data sets that are read in pieces: WebDataset's tar shards, local or by URL, and large parquet files."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from PIL import Image
from torch.utils.data import Dataset

from deformvit.data.images import IMAGE_SUFFIXES, Transform, decode
from deformvit.errors import DataError, UnreadableImage

WINDOW = 4096
"""Images of neighbouring pieces that are shuffled together; the pieces are shuffled themselves."""
WAIT = 600
"""Seconds to wait for another process that fetches a shard."""

Piece = TypeVar("Piece")


class Pieces(Dataset[tuple[Any, int]], Generic[Piece]):
    """Images in pieces, of which those in use are kept open, as many as are shuffled together.

    Args:
        lengths: images of each piece.
        classes: names of the labels.
        transform: applied to the decoded RGB image.
    """

    def __init__(self, lengths: Sequence[int], classes: list[str], transform: Transform | None) -> None:
        self.classes, self.transform = classes, transform
        self.starts = [0, *accumulate(lengths)]
        mean = max(self.starts[-1] // max(len(lengths), 1), 1)
        self.together = max(round(WINDOW / mean), 1)
        """Pieces that are shuffled together."""
        self._open_pieces: OrderedDict[int, Piece] = OrderedDict()
        self._process = os.getpid()

    def __len__(self) -> int:
        return self.starts[-1]

    def shuffled(self, generator: torch.Generator) -> torch.Tensor:
        """Indices of all images in an order that stays in few pieces at a time."""
        pieces = torch.randperm(len(self.starts) - 1, generator=generator).tolist()
        groups = []
        for begin in range(0, len(pieces), self.together):
            group = pieces[begin : begin + self.together]
            indices = torch.cat([torch.arange(self.starts[piece], self.starts[piece + 1]) for piece in group])
            groups.append(indices[torch.randperm(len(indices), generator=generator)])
        return torch.cat(groups)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        number = bisect_right(self.starts, index) - 1
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self._process != os.getpid():  # a fork shares the places in open files with its parent
            self._open_pieces, self._process = OrderedDict(), os.getpid()
        if number not in self._open_pieces:
            self._open_pieces[number] = self._open(number)
            if len(self._open_pieces) > self.together + 1:
                self._close(self._open_pieces.popitem(last=False)[1])
        self._open_pieces.move_to_end(number)
        content, label, name = self._read(self._open_pieces[number], index - self.starts[number])
        if not 0 <= label < len(self.classes):
            raise DataError(f"{name}: label {label}, expected 0 to {len(self.classes) - 1}")
        image: Image.Image = decode(content, name)
        return (self.transform(image) if self.transform else image), label

    def _open(self, number: int) -> Piece:
        raise NotImplementedError

    def _close(self, piece: Piece) -> None:
        pass

    def _read(self, piece: Piece, row: int) -> tuple[bytes, int, str]:
        """Encoded image, label, and how errors name it."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open_pieces": OrderedDict()}  # files are opened by each loader process


class _Index(NamedTuple):
    """Where the images of a tar file are."""

    keys: list[str]
    offsets: array[int]
    sizes: array[int]
    labels: array[int]


class _Shard(NamedTuple):
    file: io.BufferedReader
    places: _Index
    name: str


class TarImages(Pieces[_Shard]):
    """WebDataset's tar shards: samples are neighbouring files of one name, an image and a ``.cls`` with its label.

    Args:
        shards: paths or URLs.
        lengths: images of each, where they are known; local shards are looked through otherwise.
        classes: names of the labels; by default as many numbers as the labels of local shards ask for.
        cache: folder for shards that are fetched.
        transform: applied to the decoded RGB image.
    """

    def __init__(
        self, shards: list[str], lengths: list[int] | None, classes: list[str] | None, cache: Path,
        transform: Transform | None = None,
    ) -> None:  # fmt: skip
        self.shards, self.cache = shards, cache
        self._indices: dict[int, _Index] = {}
        if lengths is None or classes is None:
            if _is_url(shards[0]):
                raise DataError(f"{shards[0]}: shards by URL need _info.json with shard_lengths, and classes.json")
            self._indices = {number: tar_index(Path(shard)) for number, shard in enumerate(shards)}
            lengths = [len(index.keys) for index in self._indices.values()]
            largest = max((max(index.labels, default=-1) for index in self._indices.values()), default=-1)
            classes = classes or [str(i) for i in range(largest + 1)]
        super().__init__(lengths, classes, transform)

    def _open(self, number: int) -> _Shard:
        path = _fetched(self.shards[number], self.cache) if _is_url(self.shards[number]) else Path(self.shards[number])
        index = self._indices.get(number)
        if index is None:
            index = self._indices[number] = tar_index(path)
        expected = self.starts[number + 1] - self.starts[number]
        if len(index.keys) != expected:
            raise DataError(f"{self.shards[number]}: {len(index.keys)} images, but _info.json says {expected}")
        return _Shard(open(path, "rb"), index, self.shards[number])

    def _close(self, piece: _Shard) -> None:
        piece.file.close()

    def _read(self, piece: _Shard, row: int) -> tuple[bytes, int, str]:
        piece.file.seek(piece.places.offsets[row])
        content = piece.file.read(piece.places.sizes[row])
        return content, piece.places.labels[row], f"{piece.name}: {piece.places.keys[row]}"


def tar_index(path: Path) -> _Index:
    """Where the images of a shard are and what their labels are, from its headers.

    Raises:
        DataError: no tar file, or an image without a label.
    """
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                folder, _, file = member.name.rpartition("/")
                stem, _, suffix = file.partition(".")
                key, suffix = f"{folder}/{stem}" if folder else stem, f".{suffix.lower()}"
                if suffix in IMAGE_SUFFIXES:
                    images[key] = member.name, member.offset_data, member.size
                elif suffix == ".cls":
                    content = shard.extractfile(member)
                    labels[key] = int(content.read()) if content else -1
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DataError(f"{path}: not a tar file of images and .cls files ({error})") from error
    without = [name for key, (name, _, _) in images.items() if key not in labels]
    if without:
        raise DataError(f"{path}: {without[0]} has no .cls file with its label")
    found = list(images.values())
    return _Index(
        [name for name, _, _ in found], array("q", [offset for _, offset, _ in found]),
        array("q", [size for _, _, size in found]), array("q", [labels[key] for key in images]),
    )  # fmt: skip


class ParquetPieces(Pieces[Any]):
    """Parquet files that are too large for memory, read by their row groups.

    Args:
        files: parquet files of one split.
        image: name of the column of images.
        label: name of the column of labels.
        classes: names of the labels.
        transform: applied to the decoded RGB image.
    """

    def __init__(
        self, files: list[Path], image: str, label: str, classes: list[str], transform: Transform | None = None
    ) -> None:
        import pyarrow.parquet as pq

        self.image, self.label = image, label
        self.groups: list[tuple[Path, int]] = []
        lengths = []
        for file in files:
            metadata = pq.ParquetFile(file).metadata
            for group in range(metadata.num_row_groups):
                self.groups.append((file, group))
                lengths.append(metadata.row_group(group).num_rows)
        super().__init__(lengths, classes, transform)

    def _open(self, number: int) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        file, group = self.groups[number]
        try:
            return pq.ParquetFile(file).read_row_group(group, columns=[self.image, self.label])
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{file}: row group {group} cannot be read ({error})") from error

    def _read(self, piece: Any, row: int) -> tuple[bytes, int, str]:
        value = piece[self.image][row].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        name = f"{self.groups[0][0].parent}, a row with label {piece[self.label][row].as_py()}"
        if content is None:
            raise UnreadableImage(f"{name}: no image bytes")
        return content, piece[self.label][row].as_py(), name


def open_tar(root: str, split: str, names: Sequence[str], transform: Transform | None, cache: Path) -> TarImages | None:
    """The tar shards of a split, or None where there are none.

    A folder or URL holds ``_info.json`` in timm's format, ``{"splits": {"train": {"filenames": [...], "shard_lengths":
    [...]}}}``; a local one without it, shards whose names begin with the split or have it between other characters
    than letters. Names of the classes are in ``classes.json``, a list, where there is one.

    Raises:
        DataError: an index that cannot be read, or one without the split.
    """
    info = _json(root, "_info.json")
    classes = _json(root, "classes.json")
    if info is not None:
        splits = info.get("splits", {})
        part = next((splits[name] for name in (*names, split) if name in splits), None)
        if part is None:
            raise DataError(f"{root}/_info.json: no split {' or '.join(names)}, it has {', '.join(splits)}")
        shards, lengths = part["filenames"], part["shard_lengths"]
        return TarImages([f"{root.rstrip('/')}/{name}" for name in shards], lengths, classes, cache, transform)
    if _is_url(root):
        raise DataError(f"{root}: no _info.json there, which says what shards there are")
    for name in names:
        pattern = re.compile(rf"(^|[^a-z]){name}([^a-z]|$)")
        found = [str(path) for path in sorted(Path(root).glob("*.tar")) if pattern.search(path.stem)]
        found = found or [str(path) for path in sorted((Path(root) / name).glob("*.tar"))]
        if found:
            return TarImages(found, None, classes, cache, transform)
    return None


def _json(root: str, name: str) -> Any:
    try:
        if _is_url(root):
            with urllib.request.urlopen(f"{root.rstrip('/')}/{name}", timeout=60) as answer:
                return json.load(answer)
        path = Path(root) / name
        return json.loads(path.read_text()) if path.is_file() else None
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise DataError(f"{root}/{name}: {error}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{root}/{name}: cannot be read ({error})") from error


def has_tar(root: Path) -> bool:
    """Whether a folder holds tar shards."""
    return any(next(root.glob(pattern), None) for pattern in ("_info.json", "*.tar", "*/*.tar"))


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def _fetched(url: str, cache: Path, read: Callable[..., Any] = urllib.request.urlopen) -> Path:
    """The local copy of a shard; one process fetches it, others wait."""
    target = cache / re.sub(r"[^A-Za-z0-9._-]", "_", url.split("://")[1])
    lock = target.with_name(f"{target.name}.lock")
    deadline = time.monotonic() + WAIT
    cache.mkdir(parents=True, exist_ok=True)
    while not target.is_file():
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            stale = lock.exists() and time.time() - lock.stat().st_mtime > WAIT
            if stale or time.monotonic() > deadline:
                lock.unlink(missing_ok=True)  # of a process that died
            time.sleep(0.1)
            continue
        temporary = target.with_name(f".{target.name}.tmp")
        try:
            with read(url, timeout=60) as answer, open(temporary, "wb") as file:
                shutil.copyfileobj(answer, file)
            expected = answer.headers.get("Content-Length")
            if expected is not None and temporary.stat().st_size != int(expected):
                raise DataError(f"{url}: {temporary.stat().st_size} of {expected} bytes arrived")
            temporary.replace(target)
        except OSError as error:
            raise DataError(f"{url}: cannot be fetched to {cache} ({error})") from error
        finally:
            temporary.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
    return target
