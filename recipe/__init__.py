"""What both implementations share: everything that decides a run. NumPy only, no framework."""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def end_quietly_on_signals() -> None:
    """Let Ctrl-C, SIGTERM and SIGHUP end a program with one line from its first moment on.

    Packages with programs call this before their slow imports. It does nothing in a process that only imports
    them. `recipe.console.run_command` takes over once there is something to save.
    """
    if sys.argv[:1] == ["-m"]:  # as long as Python is locating the module that it will run
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, leave)


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """End the process at once: a signal handler."""
    os.write(2, b"interrupted\n")
    os._exit(128 + number)
