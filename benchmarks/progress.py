"""How far a measurement is, and how long it takes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from recipe import report


@contextmanager
def show_progress(total: int) -> Iterator[Callable[[str], None]]:
    """Say after the first unit how long all take; show a bar on a terminal, elsewhere a line for each tenth.

    Args:
        total: units of work.

    Yields:
        A function to call after each unit with what was done.
    """
    began, done = time.monotonic(), 0
    with report.make_progress() as bar:
        task = bar.add_task("", total=total)

        def advance(what: str) -> None:
            nonlocal done
            done += 1
            bar.update(task, advance=1, description=what)
            minutes = (time.monotonic() - began) / 60
            if done == 1:
                report.show_line(f"{what}; all {total} will take about {max(1, round(minutes * total))} min")
            elif bar.disable and 10 * (done - 1) // total < 10 * done // total:
                report.show_line(f"{what}; {done} of {total} after {minutes:.1f} min")

        yield advance
