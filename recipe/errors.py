"""The exception that a person's mistake raises, and texts that are safe to print."""

import re

MAX_CHARACTERS = 2_000  # of a message, which may quote a damaged file


class UserError(ValueError):
    """A mistake a person can mend: the message is one line saying what was wrong, where, and what to do.

    The command lines print it without a traceback and exit with code 2.
    """

    def __init__(self, message: object):
        super().__init__(one_line(str(message)))


def one_line(text: str) -> str:
    """A text as one line that is safe to print: a text from a file may contain a terminal's control codes."""
    if len(text) > MAX_CHARACTERS:
        text = text[: MAX_CHARACTERS - 3] + "..."
    text = re.sub(r"\s*[\r\n]\s*", " ", text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def explain(error: BaseException) -> str:
    """The type and the message of an exception, on one line."""
    message = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def reason(error: BaseException) -> str:
    """The message of an exception, on one line; its type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__
