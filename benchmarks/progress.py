"""How far a measurement is, and how long it takes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from recipe import console


@contextmanager
def show_progress(total: int, compiles: bool = False) -> Iterator[Callable[[str], None]]:
    """Say after the first two units how long it takes; show a bar on a terminal, elsewhere ten lines.

    Args:
        total: units of work.
        compiles: whether the first unit includes compilation, so that its time says nothing of the others.

    Yields:
        A function to call after each unit with what was done.
    """
    last = time.monotonic()
    done = 0
    with console.make_progress() as bar:
        task = bar.add_task("", total=total)

        def advance(what: str) -> None:
            nonlocal done, last
            done, before, last = done + 1, last, time.monotonic()
            bar.update(task, advance=1, description=what)
            left = int(np.ceil((total - done) * (last - before) / 60))
            says = done <= 2 or (bar.disable and 10 * (done - 1) // total < 10 * done // total)
            if says and not (compiles and done == 1):
                when = f"about {left} min left" if left > 1 else "less than a minute left" if left else "done"
                console.show_line(f"{what}; {done} of {total}, {when}")

        yield advance
