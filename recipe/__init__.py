"""What both implementations share: everything that decides a run. NumPy only, no framework."""

import os
import re
import signal
import sys
from types import FrameType, TracebackType
from typing import NoReturn

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def start_program() -> None:
    """Let Ctrl-C, SIGTERM and SIGHUP end a program with one line from its first moment on.

    Packages with programs call this before their slow imports. It does nothing in a process that only imports
    them. `recipe.console.run_command` takes over once there is something to save.
    """
    if sys.argv[:1] == ["-m"]:  # as long as Python is locating the module that it will run
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, leave)
        threads = os.environ.get("OMP_NUM_THREADS") or "1"
        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", threads):  # before OpenMP says so in its own words
            print(f"error: OMP_NUM_THREADS is {threads!r}; give a number of threads", file=sys.stderr)
            sys.exit(2)
        sys.excepthook = _explain_missing


def _explain_missing(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say what to install where an import fails; everything else is Python's to say."""
    if not isinstance(error, ModuleNotFoundError):
        return sys.__excepthook__(kind, error, trace)
    print(f"error: {error.name} is not installed; pip install -e '.[all]' in the checkout", file=sys.stderr)
    sys.stderr.flush()
    os._exit(2)


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """End the process at once: a signal handler."""
    os.write(2, b"interrupted\n")
    os._exit(128 + number)
