"""Kill training runs with SIGKILL, resume them, and compare them with a run that was never killed.

Every run is the real `recipe.run.train` in a process of its own, forked from a server that has imported both
frameworks and used neither, so a run takes about a second. After each kill the files in the run folder are
read and the run is resumed. Its checkpoint, losses and metrics (except the seconds) must then have the same
bits as those of the run that was never killed.
"""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from importlib import import_module
from multiprocessing.context import ForkContext, ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np

import recipe.checkpoint
from recipe.checkpoint import FILE_NAME, Checkpoint, load_checkpoint
from recipe.run import FILES, TrainOptions, train

TIMEOUT_S = 300  # for one run, which takes a few seconds
MODULES = {"torch": "torch_impl.train", "jax": "jax_impl.train", "fake": "tests.fake"}
EPOCHS = 2
OPTIONS = TrainOptions(network="net9954", dataset="digits", epochs=EPOCHS, device="cpu")


class Outcome(NamedTuple):
    """What became of one run."""

    killed: bool  # False: it ended before the kill
    epochs_kept: int  # in the checkpoint after the kill
    damaged: bool  # a file under its own name was not whole
    identical: bool  # after resuming, to the run that was never killed


def count(outcomes: list[Outcome]) -> dict[str, int]:
    """How many runs were killed, and what became of those."""
    killed = [outcome for outcome in outcomes if outcome.killed]
    kept = Counter(outcome.epochs_kept for outcome in killed)
    return {
        "kills": len(killed),
        "identical": sum(outcome.identical for outcome in killed),
        "damaged": sum(outcome.damaged for outcome in killed),
        **{f"kept_{epochs}": kept[epochs] for epochs in range(EPOCHS + 1)},
    }


# ------------------------------------------------------------------------------------ in the killed process


def run(name: str, options: TrainOptions, log: Path, line: int | None = None) -> None:
    """One training run; what it prints goes to the log.

    With ``line``, the process is killed before it executes that line of `recipe.checkpoint`, where 0 is the first
    line that a run executes. If the run ends first, it writes the number of executed lines beside the log.
    """
    with log.open("a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    module = import_module(MODULES[name])
    if name == "fake":
        module.skip_slow_parts()
        os.fsync = lambda _: None  # a kill loses nothing that was written; a power cut would
    if line is None:
        train(options, module.FRAMEWORK)
        return
    lines_left = [line]
    sys.settrace(partial(kill_at_line, lines_left))
    train(options, module.FRAMEWORK)
    sys.settrace(None)
    log.with_suffix(".lines").write_text(str(line - lines_left[0]))


def kill_at_line(lines_left: list[int], frame: FrameType, event: str, _: Any) -> Any:
    """A trace function: kills the process when no lines of `recipe.checkpoint`, which it counts, are left."""
    if frame.f_code.co_filename != recipe.checkpoint.__file__:
        return None
    if event == "line":
        if lines_left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        lines_left[0] -= 1
    return partial(kill_at_line, lines_left)


# ----------------------------------------------------------------------------------------------- the killer


def make_context() -> ForkServerContext:
    """Starts processes from a server that has imported everything and that has no threads yet."""
    context = multiprocessing.get_context("forkserver")
    imported_by_a_run = ["torch._dynamo.exc", "sklearn.datasets", "matplotlib.pyplot"]
    context.set_forkserver_preload(["tests.kills", *MODULES.values(), *imported_by_a_run])
    return context


class Killer:
    """Kills runs of one framework and compares them with one that was not killed."""

    def __init__(self, name: str, folder: Path, context: ForkContext | ForkServerContext):
        self.name, self.folder, self.context = name, folder, context
        self.log = folder / "log"
        self._finish("warm-up")  # fills JAX's compilation cache
        began = time.perf_counter()
        self._finish("whole")
        self.seconds = time.perf_counter() - began  # that a run takes
        self.expected = load_checkpoint(folder / "whole" / FILE_NAME)
        assert is_identical(folder / "warm-up", self.expected)

    def kill_after(self, seconds: float) -> Outcome:
        """Kill a run after so many seconds, and resume it."""
        process = self._start("killed")
        process.join(seconds)
        process.kill()
        process.join(TIMEOUT_S)
        return self._resume(process.exitcode)

    def kill_at_line(self, line: int) -> Outcome:
        """Kill a run before it executes a line of `recipe.checkpoint`, and resume it."""
        process = self._start("killed", line=line)
        process.join(TIMEOUT_S)
        return self._resume(process.exitcode)

    def count_lines(self) -> int:
        """The number of lines of `recipe.checkpoint` that a run executes."""
        self._finish("counted", line=sys.maxsize)
        return int(self.log.with_suffix(".lines").read_text())

    def _resume(self, exit_code: int | None) -> Outcome:
        """Read what a killed run left, resume it, compare, and remove its folder."""
        assert exit_code in (0, -signal.SIGKILL), self.log.read_text()[-500:]
        folder = self.folder / "killed"
        whole, epochs = read_files(folder)
        if exit_code:
            self._finish("killed", resume=folder if epochs else None)
        outcome = Outcome(exit_code != 0, epochs, not whole, is_identical(folder, self.expected))
        shutil.rmtree(folder)
        return outcome

    def _start(self, out: str, resume: Path | None = None, line: int | None = None) -> BaseProcess:
        options = replace(OPTIONS, out=self.folder / out, resume=resume)
        process = self.context.Process(target=run, args=(self.name, options, self.log, line))
        process.start()
        return process

    def _finish(self, out: str, resume: Path | None = None, line: int | None = None) -> None:
        process = self._start(out, resume, line)
        process.join(TIMEOUT_S)
        assert process.exitcode == 0, self.log.read_text()[-500:]


def read_files(folder: Path) -> tuple[bool, int]:
    """Whether every file in a run folder is whole, and the number of epochs in its checkpoint."""
    paths, epochs = {name: folder / name for name in FILES if (folder / name).exists()}, 0
    try:
        if FILE_NAME in paths:
            epochs = len(load_checkpoint(paths[FILE_NAME]).metrics)
        if "losses.npy" in paths:
            np.load(paths["losses.npy"], allow_pickle=False)
        if "metrics.jsonl" in paths:
            text = paths["metrics.jsonl"].read_text()
            assert text.endswith("\n") and [json.loads(line) for line in text.splitlines()]
        if "config.json" in paths:
            json.loads(paths["config.json"].read_text())
        if "curves.png" in paths:
            assert paths["curves.png"].read_bytes().endswith(b"IEND\xaeB`\x82")
    except (ValueError, AssertionError):
        return False, epochs
    return True, epochs


def is_identical(folder: Path, expected: Checkpoint) -> bool:
    """Whether a run folder has all its files, no others, and the bits of the expected run."""
    checkpoint = load_checkpoint(folder / FILE_NAME)
    losses = np.load(folder / "losses.npy", allow_pickle=False)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return (
        {path.name for path in folder.iterdir()} == set(FILES)
        and checkpoint.tensors.keys() == expected.tensors.keys()
        and all(
            checkpoint.tensors[name].tobytes() == expected.tensors[name].tobytes()
            for name in expected.tensors
        )
        and checkpoint.losses.tobytes() == losses.tobytes() == expected.losses.tobytes()
        and checkpoint.metrics == metrics
        and _without_seconds(metrics) == _without_seconds(expected.metrics)
    )


def _without_seconds(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in metrics]


if __name__ == "__main__":  # python -m tests.kills FOLDER: forks faster than a server that has frameworks
    fake = Killer("fake", Path(sys.argv[1]), multiprocessing.get_context("fork"))
    print(json.dumps(count([fake.kill_at_line(line) for line in range(fake.count_lines())])))
