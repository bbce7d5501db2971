"""Write files so that nobody ever reads half of one; read no more of a file than it should hold."""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from recipe.errors import UserError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that after a crash is either the old one or the new one, whole.

    Raises:
        UserError: it cannot be written (disk full, no permission); the old file is untouched.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException as error:  # Ctrl-C too
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; nothing there was changed"
        ) from error
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a renaming in a folder outlast a power cut; without it, the old file may be back afterwards."""
    with suppress(OSError):  # some file systems and some folders do not allow it; the file is whole
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_leftovers(path: Path) -> None:
    """Remove what `write_atomically` left beside a file when its process was killed.

    Call this only while holding the folder's lock: another process may still be writing its temporary file.

    Raises:
        OSError: they cannot be removed.
    """
    for leftover in path.parent.glob(f".{path.name}.????????"):  # as tempfile names them
        leftover.unlink(missing_ok=True)


def read_at_most(path: Path, limit: int) -> bytes:
    """A file's first ``limit + 1`` bytes: more than ``limit`` means that the file is too large.

    Raises:
        OSError: it cannot be read, or is no regular file: a pipe may never answer, and a device has no end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is no regular file")
    with path.open("rb") as file:
        return file.read(limit + 1)
