"""Writing files so that a crash loses nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from deformvit.errors import UserError


def write_atomically(path: Path, write: Callable[[Path], object], several: bool = False) -> None:
    """Call ``write`` with a temporary path beside ``path``, then move the finished file into place.

    Args:
        path, several: as of :func:`atomically`.
        write: writes the contents to the path that it is given, where an empty file is.
    """
    with atomically(path, several) as temporary:
        write(temporary)


@contextlib.contextmanager
def atomically(path: Path, several: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path``, where an empty file is; at the end what was written moves into place.

    A crash at any moment leaves the old file or the new one, never a part. The file gets the permissions of an ordinary
    new file, also where what writes it makes a private one.

    Args:
        path: the file; its folder is created where it is missing.
        several: several processes may write the file at once; the last one's stays.

    Raises:
        UserError: no file can be made there.
    """
    # Without several always the same name, so that what a killed process left is replaced.
    mark = f".{uuid.uuid4().hex}" if several else ""
    temporary = path.with_name(f".{path.name}{mark}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        # The kernel applies the umask and the folder's default permissions. Python can read the umask only by setting
        # it, for all threads of the process.
        created = os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o666)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    try:
        try:
            mode = stat.S_IMODE(os.fstat(created).st_mode)
        finally:
            os.close(created)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
