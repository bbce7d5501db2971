"""What a person sees and types: the screen, pictures, the command line, errors, signals."""

import io
import itertools
import os
import re
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from itertools import dropwhile, takewhile
from types import FrameType
from typing import IO, Any, NoReturn, TypeVar, cast

import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

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


class Signalled(KeyboardInterrupt):
    """The process was told to end."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code(interruption: KeyboardInterrupt) -> int:
    """The shells' 128 + signal: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    number = interruption.number if isinstance(interruption, Signalled) else signal.SIGINT
    return 128 + number


@contextmanager
def raise_on_signal() -> Iterator[None]:
    """Within it, both signals raise `Signalled` in the main thread.

    A signal that is ignored stays ignored: ``nohup`` ignores SIGHUP so that the program goes on. Who sets
    another handler within it keeps that.
    """
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in ours:
            if signal.getsignal(number) is _end:
                signal.signal(number, signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise Signalled(number)


class Screen:
    """Standard output for as long as there is one: a run must not end because its terminal did.

    Where writing fails (terminal or pipe closed, disk full), one line on stderr says so and the rest is
    dropped. Characters that its encoding does not have are escaped.
    """

    @property
    def stream(self) -> IO[str] | None:
        """Standard output as it is now; None if the program was started without one."""
        return getattr(sys.stdout, "rich_proxied_file", sys.stdout)  # under a progress bar's own stream

    @property
    def encoding(self) -> str:
        """The stream's encoding."""
        return getattr(self.stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Return True if standard output is a terminal."""
        with suppress(ValueError):  # closed
            return self.stream is not None and self.stream.isatty()
        return False

    def fileno(self) -> int:
        """The stream's descriptor, from which its width is read."""
        if self.stream is None:
            raise OSError("there is no standard output")
        return self.stream.fileno()

    def write(self, text: str) -> int:
        """Write the text, or drop it if standard output is gone."""
        if self.stream is not None:
            try:
                self.stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
            except (OSError, ValueError) as error:
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Flush, unless standard output is gone."""
        if self.stream is not None:
            try:
                self.stream.flush()
            except (OSError, ValueError) as error:
                self._lose(error)

    def _lose(self, error: Exception) -> None:
        _divert(self.stream)
        reason = getattr(error, "strerror", None) or error
        _complain(f"standard output takes no more ({reason}); going on without it")


def _divert(stream: IO[str] | None) -> None:
    """Connect a broken stream to the null device; otherwise Python would fail once more when it exits."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, cast(IO[str], stream).fileno())
        os.close(nowhere)


def _complain(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _divert(sys.stderr)


def show_error(message: str) -> None:
    """Print the one line on stderr that a program ends with."""
    _complain(f"error: {one_line(message)}")


_stdout = Screen()
screen = Console(file=cast(IO[str], _stdout), highlight=False)


def show_notice(message: str) -> None:
    """Print something that a person must not overlook."""
    screen.print(message, style="bold yellow", markup=False, soft_wrap=True)


def count(number: int, noun: str) -> str:
    """A number with its noun: "1 epoch", "2,000 epochs"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def show_line(message: str) -> None:
    """Print one line, however long, above a progress bar that is running."""
    screen.print(message, markup=False, soft_wrap=True)


def make_progress() -> Progress:
    """A progress bar in steps; it shows on a terminal only."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=screen,
        transient=True,
        speed_estimate_period=3600,  # a framework may finish a whole epoch at once
        disable=not screen.is_terminal,
    )


def subplots(rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure and its axes, as ``pyplot.subplots`` returns them, for PNG files only."""
    import matplotlib  # here, because it is slow to import and needed only at the end of a run

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, layout="constrained", **options)


def encode_png(figure: Any) -> bytes:
    """The figure as PNG bytes; it is closed."""
    from matplotlib import pyplot

    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    pyplot.close(figure)
    return content.getvalue()


OptionsT = TypeVar("OptionsT")


def optional(metavar: str, default: str = "") -> object:
    """Show an option without a fixed default by the kind of its value and, if there is one, a default."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})" if default else "")


def check_range(option: str, value: int | None, low: int, high: int) -> None:
    """Refuse a number that is out of range.

    Raises:
        UserError: naming the option and its range.
    """
    if value is not None and not low <= value <= high:
        raise UserError(f"{option} {value} is out of range; give {low} to {high}")


def run_command(options_type: type[OptionsT], main: Callable[[OptionsT], None], program: str) -> None:
    """Parse the command line, run ``main``, and exit with a code that says how it ended.

    2 after a `UserError`, which becomes one line on stderr; 128 + signal after Ctrl-C, SIGTERM and SIGHUP.
    """
    try:
        with raise_on_signal():
            main(_parse(options_type, program))
    except UserError as error:
        show_error(str(error))
        sys.exit(2)
    except KeyboardInterrupt as interruption:
        sys.exit(exit_code(interruption))


def _parse(options_type: type[OptionsT], program: str) -> OptionsT:
    """The options on the command line; tyro's own errors, boxes of several lines, become a `UserError`."""
    for before, word in itertools.pairwise(sys.argv):
        if not word or re.fullmatch(r"--[\w-]+=", word):  # as of an unset variable; it would mean this folder
            raise UserError(f"{word.rstrip('=') or before} has an empty value; see {program} --help")
    shown, errors = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(shown), redirect_stderr(errors):
            return tyro.cli(options_type, prog=program)
    except SystemExit as end:
        if not end.code:  # --help
            _stdout.write(_wrap_usage(shown.getvalue()))
            _stdout.flush()  # here, where a closed pipe is no error
            raise
    except (AssertionError, IndexError, OSError) as error:  # of its own option --tyro-write-completion
        raise UserError(f"{error}; see {program} --help") from None
    raise UserError(f"{_unbox(errors.getvalue())}; see {program} --help")


def _wrap_usage(text: str) -> str:
    """A help text with its first line, which tyro does not wrap, on several lines."""
    usage, _, rest = text.partition("\n")
    if not usage.startswith("usage:"):  # but the completion of a shell
        return text
    return f"{textwrap.fill(usage, shutil.get_terminal_size().columns, subsequent_indent=' ' * 7)}\n{rest}"


def _unbox(text: str) -> str:
    """The message in tyro's box, on one line, with the options that it suggests.

    The box is coloured on a terminal, and drawn with dashes where the encoding lacks its lines. Its choices
    come in any order, among them the None of an option without a fixed default, which nobody can type.
    """
    lines = [line.strip("│| ") for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()[1:]]
    below_title = list(dropwhile(_is_rule, lines))
    message = " ".join(takewhile(lambda line: not _is_rule(line), below_title)).rstrip(".")
    if message.startswith("Missing from"):  # with the help texts of the options
        return "missing: " + " and ".join(re.findall(r"--[\w-]+ [A-Z]+(?= )", message))
    message = re.sub(r"one of \((.*)\)", _list_choices, message.replace("{None}|", ""))
    similar = re.findall(
        r"(?:Perhaps you meant|Arguments similar to \S+): +(--[\w-]+)", " ".join(below_title)
    )
    return f"{message}; did you mean {' and '.join(sorted(set(similar)))}?" if similar else message


def _list_choices(choices: re.Match[str]) -> str:
    return "one of " + ", ".join(sorted(set(re.findall(r"'(.*?)'", choices[1])) - {"None"}))


def _is_rule(line: str) -> bool:
    """Whether a line of a box has no text."""
    return not line.strip("─-╰╯")
