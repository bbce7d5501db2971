"""What a user can mend."""

import traceback
from pathlib import Path


class UserError(Exception):
    """A mistake in what was given: one line that says what was wrong, where, and what to do."""


def explain(error: BaseException) -> str:
    """An error in one line."""
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def own_line(error: BaseException, libraries: tuple[str, ...]) -> str:
    """The innermost line of the user's code that an error passed; empty if all files are of libraries.

    Args:
        error: as it was caught.
        libraries: how the paths of files begin that are not the user's.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(libraries)]
    return f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
