"""Feed every reader faulty inputs and count what comes out: ``python -m benchmarks.fuzz --help``.

Each reader works in a process of its own that may not take more than a gigabyte beyond what it starts with
and is ended by an alarm when one input takes too long. Input n of a reader is always the same.
"""

import json
import multiprocessing
import os
import resource
import signal
import tempfile
import time
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.fuzz_readers import READERS, is_accepted
from benchmarks.machine import describe_machine, save_part
from recipe import report
from recipe.options import check_choice, check_range, run_command

HANG_S, HANG_WALL_S = 10.0, 300.0  # of computing, of waiting; other programs may have the processor meanwhile
MEMORY_BYTES = 2**30  # that a reader may take beyond what it starts with
NEXT, ACCEPTED, REFUSED, TRACEBACKS, SLOWEST, GROWTH = range(6)  # what a worker counts in shared memory
EXAMPLES = 5


@dataclass(frozen=True)
class FuzzOptions:
    """Count refusals, tracebacks, crashes and hangs of all that reads anything from outside."""

    inputs: int = 10_000
    """For each reader."""
    readers: tuple[str, ...] = tuple(READERS)
    """Which readers; the result file keeps the others'."""
    start: int = 0
    """Number of the first input."""
    out: Path = Path("results/reliability-fuzz.json")
    """Result file."""


def work(name: str, stop: int, counts: Any, folder: str) -> None:
    """Read inputs from number ``counts[NEXT]`` on, counting; the process's whole life."""
    reader = READERS[name](Path(folder))
    _limit_memory()
    before = _peak_bytes()
    while (number := int(counts[NEXT])) < stop:
        given = reader.make(Random(f"{name} {number}"))
        signal.setitimer(signal.ITIMER_PROF, HANG_S)  # whose signals end the process
        signal.setitimer(signal.ITIMER_REAL, HANG_WALL_S)
        began = time.process_time()
        try:
            counts[ACCEPTED if is_accepted(reader, given) else REFUSED] += 1
        except Exception:
            counts[TRACEBACKS] += 1
            with (Path(folder) / "tracebacks").open("a") as file:
                file.write(f"input {number}: {traceback.format_exc()}\0")
        counts[SLOWEST] = max(counts[SLOWEST], time.process_time() - began)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        counts[GROWTH] = max(counts[GROWTH], _peak_bytes() - before)
        counts[NEXT] = number + 1


def _limit_memory() -> None:
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY_BYTES, taken + MEMORY_BYTES))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def measure(name: str, start: int, stop: int) -> dict[str, Any]:
    """What one reader makes of inputs start..stop-1."""
    counts = multiprocessing.Array("d", 6, lock=False)
    counts[NEXT] = start
    crashes: list[str] = []
    hangs = 0
    with tempfile.TemporaryDirectory(prefix="lockstep-") as folder:
        while counts[NEXT] < stop:
            worker = multiprocessing.get_context("fork").Process(
                target=work, args=(name, stop, counts, folder)
            )
            worker.start()
            worker.join()
            if worker.exitcode in (-signal.SIGALRM, -signal.SIGPROF):
                hangs += 1
            elif worker.exitcode:
                crashes.append(f"input {int(counts[NEXT])}: exit code {worker.exitcode}")
            if worker.exitcode:
                counts[NEXT] += 1
        log = Path(folder) / "tracebacks"
        tracebacks = log.read_text().split("\0")[:EXAMPLES] if log.exists() else []
    return {
        "inputs": stop - start,
        "accepted": int(counts[ACCEPTED]),
        "refused": int(counts[REFUSED]),
        "tracebacks": int(counts[TRACEBACKS]),
        "crashes": len(crashes),
        "hangs": hangs,
        "slowest_s": round(counts[SLOWEST], 3),
        "peak_growth_mib": round(counts[GROWTH] / 2**20, 1),
        "examples": [*(each for each in tracebacks if each), *crashes[:EXAMPLES]],
    }


def main(options: FuzzOptions) -> None:
    """Fuzz as the command line says and write what was found.

    Raises:
        UserError: a faulty option.
    """
    check_range("--inputs", options.inputs, 1, 10**9)
    check_range("--start", options.start, 0, 10**12)
    for name in options.readers:
        check_choice("--readers", name, *READERS)
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in options.readers:
        about = {"machine": describe_machine(), "date": datetime.now(UTC).isoformat(timespec="seconds")}
        found = measure(name, options.start, options.start + options.inputs)
        report.show_line(f"{name}: {json.dumps(found)}")
        save_part(options.out, name, about | found)
    report.show_line(f"-> {options.out}")


if __name__ == "__main__":
    run_command(FuzzOptions, main, "python -m benchmarks.fuzz")
