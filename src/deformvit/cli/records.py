"""What ``deformvit predict`` writes as JSON and as CSV, while the images are predicted."""

from __future__ import annotations

import contextlib
import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from deformvit.cli.inputs import refuse_existing, refuse_to_overwrite
from deformvit.errors import UserError

if TYPE_CHECKING:
    from deformvit.inference import Predictor
    from deformvit.results import Result

STDOUT = Path("-")


class Records:
    """Writes what was found in images, in their order.

    The JSON is an array with an object for each image, on a line of its own: ``image`` and what ``to_dict`` of its
    result says, or ``image`` and ``error``. The CSV has a row for each image, of detectors for each object, of
    segmentation networks for each class that an image has; an image that cannot be read has a row with an ``error``.

    Args:
        predictor: whose results are written.
        paths: names of the images.
        top: classifiers: classes of an image.
        json_file, csv_file: what is written to.
    """

    def __init__(
        self, predictor: Predictor[Any], paths: list[str], top: int, json_file: IO[str] | None, csv_file: IO[str] | None
    ) -> None:
        self.paths, self.json_file = paths, json_file
        self.columns = _columns(predictor, top)
        self.csv = None if csv_file is None else csv.DictWriter(csv_file, self.columns, lineterminator="\n")
        if self.csv:
            self.csv.writeheader()
        self._objects = 0

    def add(self, result: Result, **more: str) -> None:
        """Write a result, in the JSON with more values."""
        image = {"image": self.paths[result.index]}
        if self.json_file:
            self._object({**image, **_values(result), **more})
        if self.csv:
            for row in _rows(result):
                self._row({**image, **row})

    def add_error(self, index: int, message: str) -> None:
        """Write that an image cannot be read."""
        self._object({"image": self.paths[index], "error": message})
        self._row({"image": self.paths[index], "error": message})

    def close(self) -> None:
        """Write what ends the JSON."""
        if self.json_file:
            self.json_file.write("\n]\n" if self._objects else "[]\n")

    def _object(self, values: dict[str, Any]) -> None:
        if self.json_file:
            self.json_file.write((",\n" if self._objects else "[\n") + json.dumps(values))
            self._objects += 1

    def _row(self, values: dict[str, Any]) -> None:
        if self.csv:
            self.csv.writerow(values)


def _columns(predictor: Predictor[Any], top: int) -> list[str]:
    if predictor.task == "classification":
        numbers = range(1, min(top, len(predictor.classes)) + 1)
        found = [f"{what}{number}" for number in numbers for what in ("name", "score")]
    elif predictor.task == "detection":
        found = ["name", "score", "x1", "y1", "x2", "y2"]
    else:
        found = ["name", "share"]
    return ["image", *found, "error"]


def _values(result: Result) -> dict[str, Any]:
    """What a result says of its image, but for numbers of pixels, of which there are too many."""
    if result.task == "segmentation":
        shares = {found.name: found.value for found in result.findings()}
        return {"task": result.task, "height": result.hw[0], "width": result.hw[1], "shares": shares}
    return result.to_dict()


def _rows(result: Result) -> list[dict[str, str]]:
    values = _values(result)
    if result.task == "classification":
        found = list(enumerate(values["predictions"], 1))
        return [
            {f"name{i}": entry["name"] for i, entry in found}
            | {f"score{i}": _short(entry["score"]) for i, entry in found}
        ]
    if result.task == "detection":
        sides = ("x1", "y1", "x2", "y2")
        return [
            {"name": entry["name"], "score": _short(entry["score"])}
            | {side: f"{value:.2f}" for side, value in zip(sides, entry["box"], strict=True)}
            for entry in values["objects"]
        ]
    return [{"name": name, "share": _short(share)} for name, share in values["shares"].items()]


def _short(value: float) -> str:
    return f"{value:.6g}"


def check(json_path: Path | None, csv_path: Path | None, inputs: list[str]) -> None:
    """Raise ``UserError`` where the two are one, exist already or are an input."""
    named = [path for path in (json_path, csv_path) if path is not None]
    if len(named) == 2 and named[0].resolve() == named[1].resolve():
        raise UserError(f"json and csv are both {named[0]}; they are different files")
    files = [path for path in named if path != STDOUT]
    refuse_to_overwrite(inputs, files)
    refuse_existing(files)


@contextlib.contextmanager
def opened(
    predictor: Predictor[Any], paths: list[str], top: int, json_path: Path | None, csv_path: Path | None
) -> Iterator[Records]:
    """Records that write to these files, which appear when all is written; ``-`` is the standard output."""
    with contextlib.ExitStack() as files:
        streams: list[IO[str] | None] = []
        for path in (json_path, csv_path):
            streams.append(None if path is None else files.enter_context(_open(path)))
        records = Records(predictor, paths, top, *streams)
        yield records
        records.close()


@contextlib.contextmanager
def _open(path: Path) -> Iterator[IO[str]]:
    from deformvit.storage import atomically

    if path == STDOUT:
        yield sys.stdout
        return
    # Names of files that are not UTF-8 are written as they are.
    with (
        atomically(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        yield file
