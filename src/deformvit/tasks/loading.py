"""Images of an evaluation: processes share them, and those that cannot be read are left out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from torch.utils.data import DataLoader, Dataset

from deformvit import distributed
from deformvit.errors import DataError, UnreadableImage

Images = TypeVar("Images")


class _Item(NamedTuple):
    key: int
    value: Any
    error: str


class _Readable(Dataset[_Item]):
    """A data set whose items hold the error where an image cannot be read."""

    def __init__(self, images: Any) -> None:
        self.images = images

    def __getitem__(self, index: int) -> _Item:
        try:
            return _Item(index, self.images[index], "")
        except UnreadableImage as error:
            return _Item(index, None, str(error))


class _Collate:
    """A task's collation of the images that could be read, and the errors of the others by index."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: list[_Item]) -> tuple[Any, dict[int, str]]:
        values = [item.value for item in items if not item.error]
        unreadable = {item.key: item.error for item in items if item.error}
        return self.collate(values) if values else None, unreadable


class EvalLoader(Generic[Images]):
    """Batches of the images that this process evaluates: of n processes each takes every n-th image.

    It can be iterated over many times. An image that cannot be read is left out; the first time with a warning.

    Args:
        images: the data set.
        collate: items -> batch.
        batch: images of a batch.
        workers: loader processes.
        limit: how many images of a process may be unreadable.
    """

    def __init__(
        self, images: Images, collate: Callable[[list[Any]], Any], batch: int, workers: int, limit: int = 50
    ) -> None:
        self.images, self.collate, self.batch, self.workers, self.limit = images, collate, batch, workers, limit
        self._unreadable: dict[int, str] = {}

    def measured(self) -> str:
        """How many images were measured: all but those that could not be read, for a table."""
        return str(len(self.images) - len(self.left_out()))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return -(-len(self._share()) // self.batch)

    def __iter__(self) -> Iterator[Any]:
        """The batches.

        Raises:
            DataError: more than ``limit`` images cannot be read.
        """
        loader: DataLoader[Any] = DataLoader(
            _Readable(self.images), self.batch, sampler=self._share(), num_workers=self.workers,
            collate_fn=_Collate(self.collate),
        )  # fmt: skip
        for batch, unreadable in loader:
            for index, message in unreadable.items():
                self._leave_out(index, message)
            if batch is not None:
                yield batch

    def left_out(self) -> list[int]:
        """Indices of the images that could not be read, of all processes, which call it together."""
        return sorted(index for indices in distributed.gather(list(self._unreadable)) for index in indices)

    def _share(self) -> range:
        return range(distributed.rank(), len(self.images), distributed.size())  # type: ignore[arg-type]

    def _leave_out(self, index: int, message: str) -> None:
        if index in self._unreadable:
            return
        self._unreadable[index] = message
        count = len(self._unreadable)
        if count > self.limit:
            raise DataError(f"{message}; more than {self.limit} images of the evaluation cannot be read")
        print(f"deformvit: left out of the evaluation: {message} ({count} so far)", file=sys.stderr)
