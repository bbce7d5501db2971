"""SIGTERM and SIGHUP end a program as Ctrl-C does: it keeps what it has and says so."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


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
