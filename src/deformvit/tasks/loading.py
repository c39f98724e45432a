"""Images in evaluation: processes share them, and those that cannot be read are left out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from torch.utils.data import DataLoader, Dataset

from deformvit import distributed
from deformvit.errors import DataError, UnreadableImage

Images = TypeVar("Images")


class _Try(NamedTuple):
    place: int
    value: Any
    error: str


class _Tried(Dataset[_Try]):
    """A data set that gives the error of an image which cannot be read."""

    def __init__(self, images: Any) -> None:
        self.images = images

    def __getitem__(self, index: int) -> _Try:
        try:
            return _Try(index, self.images[index], "")
        except UnreadableImage as error:
            return _Try(index, None, str(error))


class _Collate:
    """A task's collation of what could be read, and what could not."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, tries: list[_Try]) -> tuple[Any, dict[int, str]]:
        values = [found.value for found in tries if not found.error]
        unreadable = {found.place: found.error for found in tries if found.error}
        return self.collate(values) if values else None, unreadable


class Evaluated(Generic[Images]):
    """Batches of the images that this process evaluates, every n-th of n processes, as often as wanted.

    An image that cannot be read is left out and named once.

    Args:
        images: the data set.
        collate: items -> batch.
        batch: images at once.
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
            DataError: more images than the limit cannot be read.
        """
        loader: DataLoader[Any] = DataLoader(
            _Tried(self.images), self.batch, sampler=self._share(), num_workers=self.workers,
            collate_fn=_Collate(self.collate),
        )  # fmt: skip
        for batch, unreadable in loader:
            for index, message in unreadable.items():
                self._leave_out(index, message)
            if batch is not None:
                yield batch

    def left_out(self) -> list[int]:
        """Indices of the images that no process could read. All processes must ask."""
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
