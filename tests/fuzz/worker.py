"""Give one reader faulty inputs: ``python -m tests.fuzz.worker READER START STOP``.

Input n of a reader is always the same. The process has a memory limit; it prints counts, or ends with a
traceback that names the input.
"""

import json
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any, NoReturn

from tests.fuzz.readers import READERS, is_accepted

HANG_S = 60.0  # of waiting; other programs may have the processor meanwhile
MEMORY_BYTES = 2**30  # that a reader may use beyond what it starts with


class Hang(BaseException):
    """An input took too long; no reader may catch this."""


def try_inputs(name: str, start: int, stop: int) -> dict[str, Any]:
    """Give a reader its inputs start..stop-1.

    Returns:
        How many it accepted and refused, and the longest time one took, in seconds.

    Raises:
        BaseException: what a reader raised that is no refusal in one line, with the number of the input.
    """
    accepted, slowest = 0, 0.0
    signal.signal(signal.SIGALRM, _hang)
    with tempfile.TemporaryDirectory(prefix="lockstep-") as folder:
        reader = READERS[name](Path(folder))
        for number in range(start, stop):
            content = reader.make(Random(f"{name} {number}"))
            signal.setitimer(signal.ITIMER_REAL, HANG_S)
            began = time.process_time()
            try:
                accepted += is_accepted(reader, content)
            except BaseException as error:
                error.add_note(f"input {number} of {name}")
                raise
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            slowest = max(slowest, time.process_time() - began)
    refused = stop - start - accepted
    return {"inputs": stop - start, "accepted": accepted, "refused": refused, "slowest_s": round(slowest, 3)}


def _hang(*_: object) -> NoReturn:
    raise Hang


def _memory(key: str) -> int:
    """A line of this process's memory in bytes: VmSize is all, VmHWM the resident peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def main(name: str, start: int, stop: int) -> None:
    """Try the inputs within the memory limit and print the counts as JSON."""
    try_inputs(name, start, min(stop, start + 10))  # imports everything and allocates what every input needs
    limit = _memory("VmSize") + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _memory("VmHWM")
    counts = try_inputs(name, start, stop)
    print(json.dumps(counts | {"memory_mib": round((_memory("VmHWM") - before) / 2**20, 1)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
