"""Plain values from files that may come from a stranger, as the types that annotations expect."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from deformvit.errors import DescriptionError

MOST_ITEMS = 100_000
"""Items of a list in a file."""


def conform(value: Any, kind: Any, where: str) -> Any:
    """A value of JSON as the type of an annotation: numbers become floats, lists tuples, texts paths where expected.

    Args:
        value: of the file.
        kind: the annotation.
        where: what messages call the value.

    Raises:
        DescriptionError: another type, or a number that is not finite (but in ``metrics``, where NaN says "undefined").
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        for option in inner:
            try:
                return conform(value, option, where)
            except DescriptionError:
                continue
        raise _wrong(value, kind, where)
    if origin is Literal:
        if not isinstance(value, str) or value not in inner:
            raise DescriptionError(f"{where}: expected one of {', '.join(map(str, inner))}, got {short(value)}")
        return value
    if origin is tuple and inner[-1] is not Ellipsis:
        if not isinstance(value, list | tuple) or len(value) != len(inner):
            raise _wrong(value, kind, where)
        return tuple(conform(item, option, where) for item, option in zip(value, inner, strict=True))
    if origin in (tuple, list, Sequence):
        if not isinstance(value, list | tuple) or len(value) > MOST_ITEMS:
            raise _wrong(value, kind, where)
        items = [conform(item, inner[0], where) for item in value]
        return items if origin is list else tuple(items)
    if origin is dict:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise _wrong(value, kind, where)
        return {key: conform(item, inner[1], f"{where}.{key}") for key, item in value.items()}
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong(value, kind, where)
        undefined = where.startswith("metrics.") and isinstance(value, float)
        if not abs(value) <= sys.float_info.max and not undefined:
            raise _wrong(value, kind, where)
        return float(value)
    if kind is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong(value, kind, where)
        return value
    if kind is Path:
        if not isinstance(value, str) or "\0" in value:
            raise _wrong(value, kind, where)
        return Path(value)
    if not isinstance(value, kind):  # str, bool, None, a dataclass that is one already
        raise _wrong(value, kind, where)
    return value


def short(value: Any) -> str:
    """A value in a message, cut off where it is long."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a very large number"
    return text if len(text) <= 60 else text[:57] + "..."


def _wrong(value: Any, kind: Any, where: str) -> DescriptionError:
    expected = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
    for module in ("typing.", "collections.abc."):
        expected = expected.replace(module, "")
    return DescriptionError(f"{where}: expected {expected}, got {short(value)}")
