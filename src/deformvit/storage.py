"""Writing files so that a crash loses nothing."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object], several: bool = False) -> None:
    """Call ``write`` with a temporary path beside ``path``, then move the finished file into place.

    A crash at any moment leaves the old file or the new one, never a part. If ``several`` processes may write the file
    at once, the last one's stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without several always the same name, so that what a killed process left is replaced.
    mark = f".{uuid.uuid4().hex}" if several else ""
    temporary = path.with_name(f".{path.name}{mark}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # as an ordinary new file; some writers make theirs private
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
