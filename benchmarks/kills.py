"""Kill training runs with SIGKILL, go on, and compare: ``python -m benchmarks.kills --help``.

Every run is the real `recipe.run.train` in a process of its own, forked from a server that has imported both
frameworks and used neither, so that a run costs a second and not five. After each kill whatever is in the run
folder is read, the run goes on with the same options, and its checkpoint, losses and metrics (but for the
seconds) must be those of a run that was never killed, bit for bit.
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import numpy as np

import recipe.files
from benchmarks.machine import describe_machine, save_part
from recipe import report
from recipe.checkpoint import FILE_NAME, Checkpoint, load_checkpoint
from recipe.errors import UserError
from recipe.folder import FILES
from recipe.options import TrainOptions, check_choice, check_range, choice, run_command
from recipe.run import Framework, train

TIMEOUT_S = 300  # of one run; none takes more than a few seconds
NAMES = ("torch", "jax")
PRELOADED = [
    *("benchmarks.kills", "torch_impl.train", "jax_impl.train"),
    *("torch._dynamo.exc", "sklearn.datasets", "matplotlib.pyplot"),  # which a run imports on its way
]


@dataclass(frozen=True)
class KillOptions:
    """Kill runs at random moments and at every line of the code that writes files; go on; compare."""

    framework: Annotated[str, choice(*NAMES, "both")] = "both"
    """Whose runs."""
    kills: int = 100
    """Kills at random moments, for each framework."""
    writes: bool = True
    """Kill at every line of `recipe.files` that a run executes, too."""
    epochs: int = 2
    """Length of a run, on the bundled digits."""
    seed: int = 0
    """Of the moments."""
    out: Path = Path("results/reliability-kills.json")
    """Result file."""


# ------------------------------------------------------------------------------------ in the killed process


def run_once(name: str, options: TrainOptions, log: str, line: int | None = None) -> None:
    """One training run, its words in a file; killed at a line of `recipe.files`, the first being 0."""
    with Path(log).open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if line is not None:
        sys.settrace(partial(_kill_at, [line]))
    train(options, load_framework(name))


def count_lines(name: str, options: TrainOptions, log: str, answer: str) -> None:
    """One training run that leaves in a file how many lines of `recipe.files` it executed."""
    left = [sys.maxsize]
    with Path(log).open("a") as file:
        os.dup2(file.fileno(), 1)
    sys.settrace(partial(_kill_at, left))
    train(options, load_framework(name))
    sys.settrace(None)
    Path(answer).write_text(str(sys.maxsize - left[0]))


def load_framework(name: str) -> Framework:
    """The training program's parts."""
    if name == "torch":
        from torch_impl.train import FRAMEWORK
    else:
        from jax_impl.train import FRAMEWORK
    return FRAMEWORK


def _kill_at(left: list[int], frame: FrameType, event: str, _: Any) -> Any:
    """A trace function that follows `recipe.files` alone and kills the process when no lines are left."""
    if frame.f_code.co_filename != recipe.files.__file__:
        return None
    if event == "line":
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
    return partial(_kill_at, left)


# ----------------------------------------------------------------------------------------------- the killer


class Killer:
    """Runs of one framework, killed and gone on with, held against one that was not."""

    def __init__(self, name: str, epochs: int, folder: Path, context: ForkServerContext):
        self.name, self.folder, self.context = name, folder, context
        self.options = TrainOptions(network="net9954", dataset="digits", epochs=epochs, device="cpu")
        self.start(run_once, self.at("warm-up")).join(TIMEOUT_S)  # fills JAX's compilation cache
        began = time.perf_counter()
        whole = self.start(run_once, self.at("whole"))
        whole.join(TIMEOUT_S)
        self.seconds = time.perf_counter() - began
        if whole.exitcode != 0:
            raise UserError(f"{name} does not run here: {self.log.read_text()[-500:]}")
        self.wanted = load_checkpoint(folder / "whole" / FILE_NAME)

    @property
    def log(self) -> Path:
        """What all runs print."""
        return self.folder / "log"

    def at(self, name: str, resume: bool = False) -> TrainOptions:
        """The options of a run in a folder of that name."""
        out = self.folder / name
        return replace(self.options, out=out, resume=out / FILE_NAME if resume else None)

    def start(self, target: Callable[..., None], options: TrainOptions, *more: Any) -> BaseProcess:
        """Start a process, which is at work a moment later."""
        process = self.context.Process(target=target, args=(self.name, options, str(self.log), *more))
        process.start()
        return process

    def kill_after(self, seconds: float) -> dict[str, Any]:
        """Kill a run after so long, and go on."""
        began = time.perf_counter()
        process = self.start(run_once, self.at("killed"))
        process.join(seconds)
        process.kill()
        process.join(TIMEOUT_S)
        if process.exitcode == 0:
            self.seconds = time.perf_counter() - began  # what a run takes on this machine by now
        return self.go_on(process)

    def kill_at_line(self, line: int) -> dict[str, Any]:
        """Kill a run at a line of `recipe.files`, and go on."""
        process = self.start(run_once, self.at("killed"), line)
        process.join(TIMEOUT_S)
        return self.go_on(process)

    def lines(self) -> int:
        """How many lines of `recipe.files` a run executes."""
        answer = self.folder / "lines"
        process = self.start(count_lines, self.at("counted"), str(answer))
        process.join(TIMEOUT_S)
        shutil.rmtree(self.folder / "counted")
        return int(answer.read_text())

    def go_on(self, process: BaseProcess) -> dict[str, Any]:
        """Read what a process left, go on to the end, compare, and clear up."""
        folder = self.folder / "killed"
        if process.exitcode not in (0, -signal.SIGKILL):
            raise UserError(f"a run ended by itself with {process.exitcode}: {self.log.read_text()[-500:]}")
        readable, kept = read_what_is_there(folder)
        found = {"killed": process.exitcode == -signal.SIGKILL, "epochs_kept": kept, "readable": readable}
        done = process.exitcode == 0
        if not done:
            again = self.start(run_once, self.at("killed", resume=kept > 0))
            again.join(TIMEOUT_S)
            finished = f"is at step {self.wanted.step} already" in self.log.read_text()[-500:]
            done = again.exitcode == 0 or finished  # it was killed when all was done
        found["identical"] = done and is_identical(folder, self.wanted)
        shutil.rmtree(folder, ignore_errors=True)
        return found


def read_what_is_there(folder: Path) -> tuple[bool, int]:
    """Whether every file under its own name is whole, and the number of epochs in the checkpoint."""
    kept, ours = 0, {name: folder / name for name in FILES if (folder / name).exists()}
    try:
        if FILE_NAME in ours:
            kept = len(load_checkpoint(ours[FILE_NAME]).metrics)
        if "losses.npy" in ours:
            np.load(ours["losses.npy"], allow_pickle=False)
        if "metrics.jsonl" in ours:
            text = ours["metrics.jsonl"].read_text()
            assert text.endswith("\n") and [json.loads(line) for line in text.splitlines()]
        if "config.json" in ours:
            json.loads(ours["config.json"].read_text())
        if "curves.png" in ours:
            assert ours["curves.png"].read_bytes().endswith(b"IEND\xaeB`\x82")
    except (ValueError, AssertionError):
        return False, kept
    return True, kept


def is_identical(folder: Path, wanted: Checkpoint) -> bool:
    """Whether a run folder holds a run's every bit, all its files, and nothing else."""
    found = load_checkpoint(folder / FILE_NAME)
    losses = np.load(folder / "losses.npy", allow_pickle=False)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return (
        {path.name for path in folder.iterdir()} - {".lock"} == set(FILES)
        and found.tensors.keys() == wanted.tensors.keys()
        and all(found.tensors[name].tobytes() == tensor.tobytes() for name, tensor in wanted.tensors.items())
        and found.losses.tobytes() == losses.tobytes() == wanted.losses.tobytes()
        and lines == found.metrics
        and _without_seconds(lines) == _without_seconds(wanted.metrics)
    )


def _without_seconds(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in metrics]


# ------------------------------------------------------------------------------------------------- measuring


def make_context() -> ForkServerContext:
    """Processes forked from a server that has imported everything; no framework has started a thread yet."""
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiling would take half a minute a run
    os.environ["PYTHONWARNINGS"] = "ignore"  # JAX's, of being forked: it has no threads before its first use
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def summarise(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of what became of the runs."""
    killed = [each for each in found if each["killed"]]
    kept = [each["epochs_kept"] for each in killed]
    return {
        "kills": len(killed),
        "ended_before_the_kill": len(found) - len(killed),
        "bit_identical_after_resume": sum(each["identical"] for each in killed),
        "unreadable_files": sum(not each["readable"] for each in killed),
        "kills_by_epochs_kept": {str(number): kept.count(number) for number in sorted(set(kept))},
    }


def measure(
    name: str, options: KillOptions, folder: Path, context: ForkServerContext
) -> Iterator[dict[str, Any]]:
    """Kill runs of one framework as the options say; gives the counts so far after every ten kills."""
    killer = Killer(name, options.epochs, folder, context)
    rng = random.Random(options.seed)
    result: dict[str, Any] = {"epochs": options.epochs}
    found = []
    while sum(each["killed"] for each in found) < options.kills:
        found.append(killer.kill_after(rng.uniform(0, killer.seconds)))
        if len(found) % 10 == 0:
            yield result | {"at_random": summarise(found)}
    result["at_random"] = summarise(found)
    found = []
    for line in range(killer.lines() if options.writes else 0):
        found.append(killer.kill_at_line(line))
        result["at_every_line_of_writing"] = summarise(found)
        if len(found) % 10 == 0:
            yield result
    yield result


def main(options: KillOptions) -> None:
    """Kill as the command line says and write what was found.

    Raises:
        UserError: a faulty option, or a framework does not run here.
    """
    check_choice("--framework", options.framework, *NAMES, "both")
    check_range("--kills", options.kills, 0, 1_000_000)
    check_range("--epochs", options.epochs, 1, 100)
    context = make_context()
    for name in NAMES if options.framework == "both" else (options.framework,):
        about = {"machine": describe_machine(), "date": datetime.now(UTC).isoformat(timespec="seconds")}
        with tempfile.TemporaryDirectory(prefix="lockstep-") as folder:
            for found in measure(name, options, Path(folder), context):
                report.show_line(f"{name}: {json.dumps(found)}")
                save_part(options.out, name, about | found)
    report.show_line(f"-> {options.out}")


if __name__ == "__main__":
    run_command(KillOptions, main, "python -m benchmarks.kills")
