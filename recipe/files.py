"""Writing files so that nobody ever reads half of one."""

import os
import tempfile
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
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException as error:  # Ctrl-C too
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; nothing there was changed"
        ) from error
