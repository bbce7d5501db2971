"""Does the same seed give the same bits? ``python -m benchmarks.determinism --help``.

Runs each training program as a person does, in processes of their own: twice on one processor, and twice on
two. The answer within a number of threads must be yes; whether the number of threads matters is reported.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from benchmarks.machine import describe_machine
from recipe import report
from recipe.checkpoint import FILE_NAME, Checkpoint, load_checkpoint
from recipe.errors import UserError
from recipe.files import write_atomically
from recipe.networks import NETWORKS
from recipe.options import PRECISIONS, check_choice, check_range, choice, run_command

FRAMEWORKS = ("torch", "jax")
THREADS = (1, 2)


@dataclass(frozen=True)
class DeterminismOptions:
    """Train twice by the same seed and compare every bit, on one processor and on two."""

    network: Annotated[str, choice(*NETWORKS)] = "net9954"
    """Which network."""
    precision: Annotated[str, choice(*PRECISIONS)] = "float32"
    """Of weights and arithmetic."""
    epochs: int = 2
    """Length of a run, on the bundled digits."""
    out: Path = Path("results/reliability-determinism.json")
    """Result file."""


def run_in_process(framework: str, threads: int, options: DeterminismOptions, out: Path) -> Checkpoint:
    """One run on so many processors, with as many threads.

    Raises:
        UserError: it does not run here.
    """
    processors = sorted(os.sched_getaffinity(0))[:threads]
    arguments = {
        "--network": options.network,
        "--precision": options.precision,
        "--epochs": options.epochs,
        "--dataset": "digits",
        "--device": "cpu",
        "--out": out,
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            f"{framework}_impl.train",
            *(str(word) for pair in arguments.items() for word in pair),
        ],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        preexec_fn=partial(os.sched_setaffinity, 0, processors),  # which JAX counts
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UserError(f"{framework} does not run here: {done.stderr[-500:]}")
    return load_checkpoint(out / FILE_NAME)


def largest_difference(one: Checkpoint, other: Checkpoint) -> float | None:
    """None if two runs are the same bits; else the largest difference of a loss, which may be 0."""
    pairs = [(tensor, other.tensors[name]) for name, tensor in one.tensors.items()]
    pairs.append((one.losses, other.losses))
    if all(first.tobytes() == second.tobytes() for first, second in pairs):
        return None
    return float(np.abs(one.losses - other.losses).max())


def compare(framework: str, options: DeterminismOptions, folder: Path) -> dict[str, Any]:
    """Four runs of one framework, two for each number of threads."""
    runs = {
        (threads, turn): run_in_process(framework, threads, options, folder / f"{framework}-{threads}-{turn}")
        for threads in THREADS
        for turn in range(2)
    }
    between = largest_difference(runs[1, 0], runs[2, 0])
    return {
        "steps": runs[1, 0].step,
        **{
            f"same_bits_with_{threads}_threads": largest_difference(runs[threads, 0], runs[threads, 1])
            is None
            for threads in THREADS
        },
        "same_bits_with_1_and_2_threads": between is None,
        "largest_loss_difference_between_1_and_2_threads": between or 0.0,
    }


def main(options: DeterminismOptions) -> None:
    """Compare as the command line says and write what was found.

    Raises:
        UserError: a faulty option, or fewer than two processors.
    """
    check_choice("--network", options.network, *NETWORKS)
    check_choice("--precision", options.precision, *PRECISIONS)
    check_range("--epochs", options.epochs, 1, 1000)
    if len(os.sched_getaffinity(0)) < max(THREADS):
        raise UserError(
            "this process may use one processor only; give it two, with taskset or another machine"
        )
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "network": options.network,
        "precision": options.precision,
        "frameworks": {},
    }
    with tempfile.TemporaryDirectory(prefix="lockstep-") as folder:
        for framework in FRAMEWORKS:
            result["frameworks"][framework] = compare(framework, options, Path(folder))
            report.show_line(f"{framework}: {result['frameworks'][framework]}")
    write_atomically(options.out, (json.dumps(result, indent=1) + "\n").encode())
    report.show_line(f"-> {options.out}")


if __name__ == "__main__":
    run_command(DeterminismOptions, main, "python -m benchmarks.determinism")
