"""What every command line of the project shares: parsing, one-line errors and exit codes."""

import io
import itertools
import re
import shutil
import sys
import textwrap
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from itertools import dropwhile, takewhile
from typing import TypeVar

import tyro

from recipe import report, signals
from recipe.errors import UserError

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
        with signals.raise_on_signal():
            main(_parse(options_type, program))
    except UserError as error:
        report.show_error(str(error))
        sys.exit(2)
    except KeyboardInterrupt as interruption:
        sys.exit(signals.exit_code(interruption))


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
            report.screen.write(_wrap_usage(shown.getvalue()))
            report.screen.flush()  # here, where a closed pipe is no error
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
