"""Data sets that are read shard by shard: WebDataset's tar files, local or by URL, and large parquet files."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import tarfile
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
from filelock import FileLock, Timeout
from PIL import Image
from torch.utils.data import Dataset

from deformvit.data.images import IMAGE_SUFFIXES, Transform, decode
from deformvit.errors import DataError, UnreadableImage

WINDOW = 4096
"""Images that are shuffled together: those of as many shards as hold about this many."""
NOTICE = 10.0
"""Seconds after which waiting for another process that downloads a shard is reported."""

Shard = TypeVar("Shard")


class ShardedImages(Dataset[tuple[Any, int]], Generic[Shard]):
    """Images in shards. Those of a window stay open, as many as are shuffled together.

    Args:
        lengths: images of each shard.
        classes: names of the labels.
        transform: applied to the decoded RGB image.
        window: images that are shuffled together, about.
    """

    def __init__(
        self, lengths: Sequence[int], classes: list[str], transform: Transform | None, window: int = WINDOW
    ) -> None:
        self.classes, self.transform = classes, transform
        self.starts = [0, *accumulate(lengths)]
        mean = max(self.starts[-1] // max(len(lengths), 1), 1)
        self.shards_per_window = max(round(window / mean), 1)
        self._open_shards: OrderedDict[int, Shard] = OrderedDict()
        self._process = os.getpid()

    def __len__(self) -> int:
        return self.starts[-1]

    def shuffled(self, generator: torch.Generator) -> torch.Tensor:
        """Indices of all images: shards in random order, images shuffled within windows of neighbouring shards."""
        shards = torch.randperm(len(self.starts) - 1, generator=generator).tolist()
        windows = []
        for begin in range(0, len(shards), self.shards_per_window):
            window = shards[begin : begin + self.shards_per_window]
            indices = torch.cat([torch.arange(self.starts[shard], self.starts[shard + 1]) for shard in window])
            windows.append(indices[torch.randperm(len(indices), generator=generator)])
        return torch.cat(windows)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        number = bisect_right(self.starts, index) - 1
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self._process != os.getpid():  # a forked process shares the positions in open files with its parent
            self._open_shards, self._process = OrderedDict(), os.getpid()
        if number not in self._open_shards:
            self._open_shards[number] = self._open(number)
            if len(self._open_shards) > self.shards_per_window + 1:
                self._close(self._open_shards.popitem(last=False)[1])
        self._open_shards.move_to_end(number)
        content, label, name = self._read(self._open_shards[number], index - self.starts[number])
        if not 0 <= label < len(self.classes):
            raise DataError(f"{name}: label {label}, expected 0 to {len(self.classes) - 1}")
        image: Image.Image = decode(content, name)
        return (self.transform(image) if self.transform else image), label

    def _open(self, number: int) -> Shard:
        raise NotImplementedError

    def _close(self, shard: Shard) -> None:
        pass

    def _read(self, shard: Shard, row: int) -> tuple[bytes, int, str]:
        """Encoded image, label, and the name of the image in errors."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open_shards": OrderedDict()}  # each loader process opens the files itself


class _TarIndex(NamedTuple):
    """The images of a tar file: names, positions and lengths in bytes, labels."""

    names: list[str]
    offsets: array[int]
    sizes: array[int]
    labels: array[int]


class _OpenTar(NamedTuple):
    file: io.BufferedReader
    images: _TarIndex
    name: str


class TarShards(ShardedImages[_OpenTar]):
    """WebDataset's tar shards: samples are neighbouring files of one name, an image and a ``.cls`` with its label.

    Args:
        shards: paths or URLs.
        lengths: images of each, where they are known; otherwise the headers of local shards are read.
        classes: names of the labels; by default numbers up to the largest label of local shards.
        cache: folder for shards that are downloaded.
        transform: applied to the decoded RGB image.
        window: images that are shuffled together, about.
    """

    def __init__(
        self, shards: list[str], lengths: list[int] | None, classes: list[str] | None, cache: Path,
        transform: Transform | None = None, window: int = WINDOW,
    ) -> None:  # fmt: skip
        self.shards, self.cache = shards, cache
        self._indices: dict[int, _TarIndex] = {}
        if lengths is None or classes is None:
            if _is_url(shards[0]):
                raise DataError(f"{shards[0]}: shards by URL need _info.json with shard_lengths, and classes.json")
            self._indices = {number: tar_index(Path(shard)) for number, shard in enumerate(shards)}
            lengths = [len(index.names) for index in self._indices.values()]
            largest = max((max(index.labels, default=-1) for index in self._indices.values()), default=-1)
            classes = classes or [str(i) for i in range(largest + 1)]
        super().__init__(lengths, classes, transform, window)

    def _open(self, number: int) -> _OpenTar:
        shard = self.shards[number]
        path = download(shard, self.cache) if _is_url(shard) else Path(shard)
        index = self._indices.get(number)
        if index is None:
            index = self._indices[number] = tar_index(path)
        expected = self.starts[number + 1] - self.starts[number]
        if len(index.names) != expected:
            raise DataError(f"{shard}: {len(index.names)} images, but _info.json says {expected}")
        return _OpenTar(open(path, "rb"), index, shard)

    def _close(self, shard: _OpenTar) -> None:
        shard.file.close()

    def _read(self, shard: _OpenTar, row: int) -> tuple[bytes, int, str]:
        images = shard.images
        shard.file.seek(images.offsets[row])
        return shard.file.read(images.sizes[row]), images.labels[row], f"{shard.name}: {images.names[row]}"


def tar_index(path: Path) -> _TarIndex:
    """The index of a shard, from its headers.

    Raises:
        DataError: not a tar file, or an image without a label.
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
    members = list(images.values())
    return _TarIndex(
        [name for name, _, _ in members], array("q", [offset for _, offset, _ in members]),
        array("q", [size for _, _, size in members]), array("q", [labels[key] for key in images]),
    )  # fmt: skip


class ParquetShards(ShardedImages[Any]):
    """Parquet files that are too large for memory; their row groups are the shards.

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

    def _read(self, shard: Any, row: int) -> tuple[bytes, int, str]:
        value, label = shard[self.image][row].as_py(), shard[self.label][row].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        name = f"{self.groups[0][0].parent}, a row with label {label}"
        if content is None:
            raise UnreadableImage(f"{name}: no image bytes")
        return content, label, name


def open_tar(root: str, split: str, names: Sequence[str], transform: Transform | None, cache: Path) -> TarShards | None:
    """The tar shards of a split, or None where there are none.

    A folder or URL holds ``_info.json`` in timm's format, ``{"splits": {"train": {"filenames": [...], "shard_lengths":
    [...]}}}``. A local folder without it holds shards whose names contain the split as a word, or a folder of the
    split's name with shards. ``classes.json``, where there is one, is a list of the classes' names.

    Raises:
        DataError: ``_info.json`` cannot be read or does not have the split.
    """
    info = _json(root, "_info.json")
    classes = _json(root, "classes.json")
    if info is not None:
        splits = info.get("splits", {})
        part = next((splits[name] for name in (*names, split) if name in splits), None)
        if part is None:
            raise DataError(f"{root}/_info.json: no split {' or '.join(names)}, it has {', '.join(splits)}")
        shards, lengths = part["filenames"], part["shard_lengths"]
        return TarShards([f"{root.rstrip('/')}/{name}" for name in shards], lengths, classes, cache, transform)
    if _is_url(root):
        raise DataError(f"{root}: no _info.json there, which lists the shards")
    for name in names:
        pattern = re.compile(rf"(^|[^a-z]){name}([^a-z]|$)")
        shards = [str(path) for path in sorted(Path(root).glob("*.tar")) if pattern.search(path.stem)]
        shards = shards or [str(path) for path in sorted((Path(root) / name).glob("*.tar"))]
        if shards:
            return TarShards(shards, None, classes, cache, transform)
    return None


def _json(root: str, name: str) -> Any:
    """The contents of a JSON file of a folder or URL, None where it does not exist."""
    try:
        if _is_url(root):
            with urllib.request.urlopen(f"{root.rstrip('/')}/{name}", timeout=60) as response:
                return json.load(response)
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


def download(
    url: str, cache: Path, open_url: Callable[..., Any] = urllib.request.urlopen, notice: float = NOTICE
) -> Path:
    """The local copy of a shard; one process downloads it, others wait.

    Args:
        url: of the shard.
        cache: folder of local copies.
        open_url: ``urlopen`` or what does the same.
        notice: seconds after which waiting for another process is reported.

    Raises:
        DataError: it cannot be downloaded, or a part of it arrived.
    """
    target = cache / re.sub(r"[^A-Za-z0-9._-]", "_", url.split("://")[1])
    if target.is_file():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # The system releases the lock when its process dies; the file stays, as deleting it would let two processes in.
        lock = FileLock(target.with_name(f"{target.name}.lock"))
        try:
            lock.acquire(timeout=notice)
        except Timeout:
            print(f"deformvit: waiting for another process that downloads {url} to {cache}", file=sys.stderr)
            lock.acquire(timeout=-1)
        try:
            if not target.is_file():
                _download(url, target, open_url)
        finally:
            lock.release()
    except OSError as error:
        raise DataError(f"{url}: cannot be downloaded to {cache} ({error})") from error
    return target


def _download(url: str, target: Path, open_url: Callable[..., Any]) -> None:
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with open_url(url, timeout=60) as response, open(temporary, "wb") as file:
            shutil.copyfileobj(response, file)
        expected = response.headers.get("Content-Length")
        if expected is not None and temporary.stat().st_size != int(expected):
            raise DataError(f"{url}: {temporary.stat().st_size} of {expected} bytes arrived")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
