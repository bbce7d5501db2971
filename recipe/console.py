"""What a person sees and types: the screen, pictures, the command line, errors and signals."""

import argparse
import difflib
import io
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import MISSING, field, fields
from functools import partial
from types import FrameType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from recipe import SIGNALS, leave

MAX_CHARACTERS = 2_000  # of a message, which may quote a damaged file

OptionsT = TypeVar("OptionsT")

# Ends the program without a traceback where its output is a closed pipe.
screen = Console(highlight=False, emoji=False)


# ------------------------------------------------------------ errors


class UserError(ValueError):
    """A mistake a person can mend: the message is one line saying what was wrong, where, and what to do.

    The command lines print it without a traceback and exit with code 2.
    """

    def __init__(self, message: object):
        super().__init__(one_line(str(message)))


def one_line(text: str) -> str:
    """Return a text as one line without control characters: a text from a file may steer a terminal."""
    if len(text) > MAX_CHARACTERS:
        text = text[: MAX_CHARACTERS - 3] + "..."
    text = re.sub(r"\s*[\r\n]\s*", " ", text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def explain(error: BaseException) -> str:
    """Return the type and the message of an exception on one line."""
    message = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def reason(error: BaseException) -> str:
    """Return the message of an exception on one line; its type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


# ------------------------------------------------------------ screen


def show_line(message: str) -> None:
    """Print one line, however long, above a progress bar that is running."""
    screen.print(message, markup=False, soft_wrap=True)


def show_notice(message: str) -> None:
    """Print something that a person must not overlook."""
    screen.print(message, style="bold yellow", markup=False, soft_wrap=True)


def count(number: int, noun: str) -> str:
    """Return a number with its noun: "1 epoch", "2,000 epochs"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def make_progress() -> Progress:
    """Return a progress bar in steps; it shows on a terminal only."""
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


def subplots(
    rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], **options: Any
) -> tuple[Any, Any]:
    """Return a figure and its axes, as ``pyplot.subplots`` does, without a screen."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # of a home where it cannot keep its fonts
    from matplotlib.figure import Figure  # here, because it is slow to import and needed at the end only

    figure = Figure(figsize=figsize, layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def encode_png(figure: Any) -> bytes:
    """Return the figure as PNG bytes."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()


# ------------------------------------------------------------ command line


def option(default: Any = MISSING, help: str = "", **argument: Any) -> Any:
    """Return a dataclass field that is also an option of the command line.

    Args:
        default: without one, the option is required.
        help: for ``--help``.
        argument: for argparse's ``add_argument``; type and choices follow from the annotation.
    """
    return field(default=default, metadata={"help": help, **argument})


class _Parser(argparse.ArgumentParser):
    def print_help(self, file: object = None) -> None:
        show_line(self.format_help())

    def error(self, message: str) -> NoReturn:
        for kind, meant in (("int", "a whole number"), ("float", "a number")):
            message = re.sub(f"invalid {kind} value: (.*)", rf"\1 is not {meant}", message)
        raise UserError(f"{message}; see {self.prog} --help")


def parse_options(options_type: type[OptionsT], program: str) -> OptionsT:
    """Read the command line into a dataclass whose fields are from `option`.

    Raises:
        UserError: what argparse says of a mistake.
    """
    parser = _Parser(program, "%(prog)s [OPTIONS]", options_type.__doc__, allow_abbrev=False)
    hints = get_type_hints(options_type)
    for each in fields(options_type):  # pyright: ignore[reportArgumentType]
        kind = hints[each.name]
        if get_origin(kind) in (Union, UnionType):  # X | None
            kind = get_args(kind)[0]
        argument: dict[str, Any] = (
            {"required": True} if each.default is MISSING else {"default": each.default}
        )
        if get_origin(kind) is Literal:
            argument["choices"] = get_args(kind)
        elif kind is bool:
            argument["action"] = argparse.BooleanOptionalAction
        else:
            argument["type"] = kind if kind in (int, float) else partial(_convert, kind)
        parser.add_argument(f"--{each.name.replace('_', '-')}", **argument | dict(each.metadata))
    options, rest = parser.parse_known_args()
    if rest:
        known = [f"--{each.name.replace('_', '-')}" for each in fields(options_type)]  # pyright: ignore[reportArgumentType]
        near = [name for name in known if name.startswith(rest[0])]
        near += difflib.get_close_matches(rest[0], known, 1)
        hint = f"did you mean {near[0]}?" if near else "a value with spaces needs quotes"
        parser.error(f"unrecognized arguments: {' '.join(rest)} ({hint})")
    return options_type(**vars(options))


def _convert(kind: Callable[[str], Any], text: str) -> Any:
    if not text:  # as of an unset variable; an empty path would mean this folder
        raise argparse.ArgumentTypeError("it has an empty value")
    return kind(text)


def check_range(option: str, value: int | None, low: int, high: int) -> None:
    """Refuse a number that is out of range.

    Raises:
        UserError: naming the option and its range.
    """
    if value is not None and not low <= value <= high:
        raise UserError(f"{option} {value} is out of range; give {low} to {high}")


def run_command(options_type: type[OptionsT], main: Callable[[OptionsT], None], program: str) -> None:
    """Parse the command line, run ``main``, and exit with a code that says how it ended.

    2 after a `UserError`, which becomes one line on stderr. 128 + signal after Ctrl-C, SIGTERM and SIGHUP,
    which raise `Interrupted` in ``main``; whoever catches it to save something adds a note of what is kept.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # of what its encoding lacks
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _interrupt)
    hook, sys.unraisablehook = sys.unraisablehook, _repeat
    try:
        main(parse_options(options_type, program))
    except UserError as error:
        show_error(str(error))
        sys.exit(2)
    except KeyboardInterrupt as interruption:
        show_notice("; ".join(["interrupted", *getattr(interruption, "__notes__", ())]))
        sys.exit(128 + getattr(interruption, "number", signal.SIGINT))
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            if signal.getsignal(number) is _interrupt:  # main may have chosen another, to say its last line
                signal.signal(number, handler)


class Interrupted(KeyboardInterrupt):
    """The process was told to end by a signal of that number."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, leave)  # the second time
    if number not in (signal.SIGINT, signal.SIGTERM):  # SIGHUP: the terminal is gone, and writing to it fails
        for descriptor in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    raise Interrupted(number)


def _repeat(event: "sys.UnraisableHookArgs") -> None:
    """Send a signal again that came while an object was deleted: Python ignores what is raised there."""
    if isinstance(event.exc_value, Interrupted):
        signal.signal(event.exc_value.number, _interrupt)
        threading.Timer(0.1, os.kill, (os.getpid(), event.exc_value.number)).start()
    else:
        sys.__unraisablehook__(event)


def show_error(message: str) -> None:
    """Print the one line on stderr that a program ends with."""
    print(f"error: {one_line(message)}", file=sys.stderr)
