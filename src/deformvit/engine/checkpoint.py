"""Checkpoints of training: PyTorch's distributed checkpoints, written atomically and verified before they are read.

A checkpoint is a folder ``step-00001234``. Its tensors are in files of ``torch.distributed.checkpoint``: every process
writes its part, any number of processes can read them. ``state.json`` holds everything else, and ``files.json`` the
sizes and SHA-256 sums of the other files. The folder is written under another name and renamed when it is complete.
Reading a checkpoint does not execute code.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pickle
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from deformvit import distributed
from deformvit.errors import UserError

PREFIX = "step-"
_ALLOWED = {
    ("torch.distributed.checkpoint.metadata", "Metadata"),
    ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"),
    ("torch.distributed.checkpoint.metadata", "TensorProperties"),
    ("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata"),
    ("torch.distributed.checkpoint.metadata", "MetadataIndex"),
    ("torch.distributed.checkpoint.metadata", "StorageMeta"),
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib._local", "PosixPath"),
    ("pathlib._local", "WindowsPath"),
}
"""Classes that the pickled index of a checkpoint of tensors needs, besides dtypes; no others are unpickled."""


class CheckpointError(UserError):
    """A checkpoint cannot be used or written; the message says which and why."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint needs")


class _Reader(FileSystemReader):
    """PyTorch's reader unpickles any class that the index names; this one only those that a checkpoint needs."""

    def read_metadata(self, *_args: Any, **_options: Any) -> Metadata:
        with open(Path(self.path) / ".metadata", "rb") as file:
            metadata = _Unpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f"its index is a {type(metadata).__name__}, expected Metadata")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class Checkpoints:
    """The checkpoints of a run, of which the last few are kept.

    Args:
        folder: of the checkpoints; created with the first one. All processes must have access to it.
        keep: how many are kept.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, newest first."""
        numbers = [path.name.removeprefix(PREFIX) for path in self.folder.glob(f"{PREFIX}*") if path.is_dir()]
        return sorted((int(number) for number in numbers if number.isdecimal()), reverse=True)

    def path(self, step: int) -> Path:
        """Folder of the checkpoint of a step."""
        return self.folder / f"{PREFIX}{step:08d}"

    def save(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write a checkpoint; all processes call it together. Earlier ones stay until it is complete.

        Args:
            step: of the run.
            tensors: by name; of sharded tensors every process writes its part.
            state: everything else, JSON-able; that of rank 0 is written.

        Raises:
            CheckpointError: it cannot be written, for example on a full disk; in all processes.
        """
        target = self.path(step)
        temporary = self.folder / f".{target.name}.tmp"
        problem = _failure(lambda: self._prepare(temporary)) if distributed.rank() == 0 else ""
        problem = _any_failure(problem) or _any_failure(_failure(lambda: _write(tensors, temporary)))
        if distributed.rank() == 0 and not problem:
            problem = _failure(lambda: self._finish(temporary, target, state))
        problem = _any_failure(problem)
        if problem:
            if distributed.rank() == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(f"{target} cannot be written: {problem}; earlier checkpoints are undamaged")

    def _prepare(self, temporary: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)  # what a killed process left
        temporary.mkdir()

    def _finish(self, temporary: Path, target: Path, state: dict[str, Any]) -> None:
        (temporary / "state.json").write_text(json.dumps(state))
        files = {path.name: _summary(path) for path in sorted(temporary.iterdir())}
        (temporary / "files.json").write_text(json.dumps(files, indent=1))
        for path in (*temporary.iterdir(), temporary):
            _sync(path)
        if target.exists():  # of the same step, from before the run was resumed further back
            shutil.rmtree(target)
        temporary.rename(target)
        _sync(self.folder)  # the new name is on the disk before older checkpoints are deleted
        for step in self.steps()[self.keep :]:
            shutil.rmtree(self.path(step), ignore_errors=True)

    def newest(self) -> int | None:
        """The newest step whose checkpoint is undamaged, None where there are none; the same in all processes.

        Damaged ones are reported.

        Raises:
            CheckpointError: all checkpoints are damaged.
        """
        chosen, problems = None, []
        if distributed.rank() == 0:
            for step in self.steps():
                problem = damage(self.path(step))
                if not problem:
                    chosen = step
                    break
                problems.append(f"{self.path(step)}: {problem}")
            for problem in problems:
                print(f"deformvit: {problem}; using an earlier one", file=sys.stderr)
        chosen, problems = distributed.broadcast((chosen, problems))
        if chosen is None and problems:
            raise CheckpointError(f"no checkpoint to resume from: {problems[0]}")
        return chosen

    def state(self, step: int) -> dict[str, Any]:
        """The part of a checkpoint that is not tensors."""
        return json.loads((self.path(step) / "state.json").read_text())

    def load(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Read the tensors of a checkpoint into those given, of the same names and shapes.

        Raises:
            CheckpointError: names or shapes differ, the files cannot be read, or their index needs other classes than
                those of tensors.
        """
        path = self.path(step)
        try:
            reader = _Reader(path)
            entries = reader.read_metadata().state_dict_metadata
            names = sorted(entries.keys() ^ tensors.keys())
            if names:
                raise CheckpointError(f"{path} does not belong to this run: {names[0]} is only in one of the two")
            for name, tensor in tensors.items():
                size = tuple(entries[name].size)  # type: ignore[union-attr]
                if size != tuple(tensor.shape):
                    raise CheckpointError(
                        f"{path} does not belong to this run: {name} is {size} there, {tuple(tensor.shape)} here"
                    )
            with _quiet():
                load(tensors, storage_reader=reader)
        except (pickle.UnpicklingError, CheckpointException, OSError, EOFError, AttributeError, IndexError) as error:
            raise CheckpointError(f"{path}: not a readable checkpoint ({_reason(error)})") from error


def damage(path: Path) -> str:
    """How the files of a checkpoint differ from what was written; empty if they do not."""
    try:
        files = json.loads((path / "files.json").read_text())
        for name, (size, digest) in files.items():
            actual_size, actual_digest = _summary(path / name)
            if actual_size != size:
                return f"damaged, {name} has {actual_size} bytes instead of {size}"
            if actual_digest != digest:
                return f"damaged, the contents of {name} have changed"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"damaged ({_reason(error)})"
    return "" if {".metadata", "state.json"} <= files.keys() else "damaged, files.json does not list all files"


def _summary(path: Path) -> tuple[int, str]:
    """Bytes and SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return path.stat().st_size, digest.hexdigest()


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk, in case the power fails."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(tensors: dict[str, Tensor], folder: Path) -> None:
    with _quiet():
        save(tensors, storage_writer=FileSystemWriter(folder, overwrite=True))


def _failure(action: Callable[[], object]) -> str:
    """Why an action failed to write; empty if it did not fail."""
    try:
        action()
    except (OSError, RuntimeError, CheckpointException) as error:
        return _reason(error)
    return ""


def _any_failure(problem: str) -> str:
    """The first problem of any process, in all of them; empty if none has one."""
    return next(filter(None, distributed.gather(problem)), "")


def _reason(error: BaseException) -> str:
    """The error in one line; of a failed distributed operation, that of the first process that failed."""
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "no space left on the disk"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without PyTorch's warning that a single process saves alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is")
        yield
