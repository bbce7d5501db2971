"""A framework that computes next to nothing, for what is true of every run in any framework."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from recipe import data, run
from recipe.checkpoint import Checkpoint, Tensors
from recipe.console import run_command
from recipe.data import Dataset, Split
from recipe.networks import Network
from recipe.plan import Plan
from recipe.recipes import Recipe
from recipe.run import Framework, TrainOptions, train

OPTIONS = TrainOptions(network="net9954", dataset="digits", epochs=3, batch=128, device="cpu")


class Trainer:
    """Moves every weight a little, depending on all that the plan says, so that no step can be left out."""

    device_name = "cpu"
    threads = 1

    def __init__(self, network: Network, recipe: Recipe, split: Split, device: str, precision: str):
        self.state: Tensors = {}

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


def no_mnist(_: Path | None):
    raise OSError("there is none")


FRAMEWORK = Framework("fake", ("numpy",), Trainer, no_mnist)


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


class Unheard(Trainer):
    """Closes the other end of its standard output, the file descriptor in UNHEARD, in its second epoch."""

    def train(self, plan: Plan, advance: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray]:
        if plan.lr[0] > 0.05:
            os.close(int(os.environ["UNHEARD"]))
        return super().train(plan, advance)


def draw_nothing(_: Checkpoint) -> bytes:
    """In place of the picture, which takes half a second; it ends as a PNG does."""
    return bytes(30_000) + b"IEND\xaeB`\x82"


def load_blanks() -> Dataset:
    """In place of the digits, which take a moment to load: as many, all of them black."""
    images, labels = np.zeros((1437, 28, 28), np.uint8), np.zeros(1437, np.uint8)
    return Dataset("digits", images, labels, images[:360], labels[:360])


def skip_slow_parts(setattr: Callable[[object, str, object], None] = setattr) -> None:
    """Draw no curves, load no digits and print no layers in this process; a test passes its monkeypatch's."""
    setattr(run, "draw_curves", draw_nothing)
    setattr(data, "load_digits", load_blanks)
    setattr(run, "show_layers", lambda _: None)


if __name__ == "__main__":  # python -m tests.fake KIND ...
    skip_slow_parts()
    framework = Framework("fake", ("numpy",), globals()[sys.argv.pop(1)], no_mnist)
    run_command(TrainOptions, lambda options: train(options, framework), "python -m tests.fake")
