"""A framework that computes next to nothing, for what is true of every run in any framework."""

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from recipe import console, data, run
from recipe.checkpoint import FILE_NAME, Checkpoint, Tensors
from recipe.console import run_command
from recipe.data import Arrays, Dataset
from recipe.networks import Network
from recipe.plan import Plan
from recipe.provenance import describe_machine, provenance
from recipe.recipes import Precision, Recipe
from recipe.run import TrainOptions

OPTIONS: dict[str, Any] = {
    "network": "net9954",
    "dataset": "digits",
    "epochs": 3,
    "batch": 128,
    "device": "cpu",
    "precision": "float32",
}
PER_EPOCH = 11  # 1,437 digits in batches of 128


class Devices:
    count, name, threads = 1, "cpu", 1


class Trainer:
    """Moves every weight a little, depending on all that the plan says, so that no step can be left out."""

    framework = "fake"
    packages: tuple[str, ...] = ("numpy",)

    def __init__(
        self, network: Network, recipe: Recipe, dataset: Dataset, devices: Devices, precision: Precision
    ):
        self.state: Tensors = {}

    @staticmethod
    def read_mnist(originals: dict[str, bytes]) -> Arrays:
        raise OSError("there is none")

    def load(self, tensors: Tensors) -> None:
        self.state = {name: tensor.copy() for name, tensor in tensors.items()}

    def tensors(self) -> Tensors:
        return {name: tensor.copy() for name, tensor in self.state.items()}

    def train(self, plan: Plan, advance: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray]:
        losses = np.empty(plan.steps)
        for step in range(plan.steps):
            losses[step] = 1 + np.cos(float(self.state["conv1.weight"].sum() + plan.indices[step].sum()))
            for tensor in self.state.values():
                tensor += np.float32(plan.lr[step] * losses[step])
            advance(1)
        return losses, np.full(plan.steps, 3)

    def predict(self) -> np.ndarray:
        return np.zeros((360, 10))

    def evaluate(self) -> tuple[float, float]:
        return float(abs(self.state["conv1.weight"].sum())), 0.5


def train(out: Path | None, trainer_type: type = Trainer, **changes: Any) -> Path:
    """A run of three epochs of `PER_EPOCH` steps, or as changed; returns the path of its checkpoint."""
    options = TrainOptions(**OPTIONS | {"out": out} | changes)
    run.train(options, trainer_type, Devices())
    return (out or Path()) / FILE_NAME


class Slow(Trainer):
    """Waits half a minute in its second epoch."""

    def train(self, plan: Plan, advance: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray]:
        if plan.lr[0] > 0.05:
            time.sleep(30)
        return super().train(plan, advance)


class Limited(Trainer):
    """From its second epoch on, no file may be longer than a kilobyte."""

    def train(self, plan: Plan, advance: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray]:
        if plan.lr[0] > 0.05:
            import resource

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
        return super().train(plan, advance)


class Talking(Trainer):
    """Prints more than a pipe holds."""

    def train(self, plan: Plan, advance: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray]:
        for _ in range(2_000):
            console.show_line(100 * "x")
        return super().train(plan, advance)


def draw_nothing(_: Checkpoint) -> bytes:
    """In place of the picture, which takes half a second; it ends as a PNG does."""
    return bytes(30_000) + b"IEND\xaeB`\x82"


def load_blanks() -> Arrays:
    """In place of the digits, which take a moment to load: as many, all of them black."""
    images, labels = np.zeros((1437, 28, 28), np.uint8), np.zeros(1437, np.uint8)
    return images, labels, images[:360], labels[:360]


def no_network() -> NoReturn:
    raise OSError("there is none")


def skip_slow_parts(setattr: Callable[[object, str, object], None] = setattr) -> None:
    """Draw nothing, load no digits, ask no network and git only once; a test passes its monkeypatch's."""
    here, machine = provenance(("numpy",)), describe_machine()
    setattr(run, "provenance", lambda _: here)
    setattr(run, "describe_machine", lambda: machine)
    setattr(run, "show_layers", lambda _: None)
    setattr(run, "draw_curves", draw_nothing)
    setattr(data, "load_digits", load_blanks)
    setattr(data, "download_originals", no_network)


if __name__ == "__main__":  # python -m tests.fake KIND ...
    skip_slow_parts()
    trainer_type = globals()[sys.argv.pop(1)]
    run_command(
        TrainOptions, lambda options: run.train(options, trainer_type, Devices()), "python -m tests.fake"
    )
