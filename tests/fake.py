"""A framework of no weight at all, for what is true of every run whatever computes it."""

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import kills
from recipe import data, folder
from recipe.checkpoint import Checkpoint, Tensors
from recipe.data import Dataset, Split
from recipe.networks import Network
from recipe.options import TrainOptions, run_command
from recipe.plan import Plan
from recipe.recipes import Recipe
from recipe.run import Framework, train

OPTIONS = TrainOptions(network="net9954", dataset="digits", epochs=3, batch=128, device="cpu")


class Trainer:
    """Moves every weight a little, depending on all that the plan says, so that no step can be left out."""

    device = "cpu"

    def __init__(self, network: Network, recipe: Recipe, split: Split, device: str, precision: str):
        self.state: Tensors = {}

    def load(self, tensors: Tensors) -> None:
        self.state = {name: tensor.copy() for name, tensor in tensors.items()}

    def tensors(self) -> Tensors:
        return {name: tensor.copy() for name, tensor in self.state.items()}

    def train(self, plan: Plan, done: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray]:
        losses = np.empty(len(plan))
        for step in range(len(plan)):
            losses[step] = 1 + np.cos(float(self.state["conv1.weight"].sum() + plan.images[step].sum()))
            for tensor in self.state.values():
                tensor += np.float32(plan.rates[step] * losses[step])
            done(1)
        return losses, np.full(len(plan), 3)

    def gradients(self) -> Tensors:
        return {}

    def predict(self) -> np.ndarray:
        return np.zeros((360, 10))

    def evaluate(self) -> tuple[float, float]:
        return float(abs(self.state["conv1.weight"].sum())), 0.5


def no_mnist(_: Path | None):
    raise OSError("there is none")


FRAMEWORK = Framework("fake", ("numpy",), Trainer, no_mnist)


class Slow(Trainer):
    """Waits half a minute in its second epoch."""

    def train(self, plan: Plan, done: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray]:
        if plan.rates[0] > 0.05:
            time.sleep(30)
        return super().train(plan, done)


class Limited(Trainer):
    """From its second epoch on, no file may be longer than a kilobyte."""

    def train(self, plan: Plan, done: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray]:
        if plan.rates[0] > 0.05:
            import resource

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
        return super().train(plan, done)


class Unheard(Trainer):
    """Closes the other end of its standard output, the file descriptor in UNHEARD, in its second epoch."""

    def train(self, plan: Plan, done: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray]:
        if plan.rates[0] > 0.05:
            os.close(int(os.environ["UNHEARD"]))
        return super().train(plan, done)


def draw_nothing(_: Checkpoint) -> bytes:
    """In place of the picture, which takes half a second; it ends as a PNG does."""
    return bytes(30_000) + b"IEND\xaeB`\x82"


def load_blanks() -> Dataset:
    """In place of the digits, which take a moment to load: as many, all of them black."""
    images, labels = np.zeros((1437, 28, 28), np.uint8), np.zeros(1437, np.uint8)
    return Dataset("digits", images, labels, images[:360], labels[:360])


def run_until(line: int, out: Path, answer: Path) -> None:
    """A run of two epochs that is killed at a line of `recipe.files`; else it leaves how many it executed."""
    folder.draw_curves, data.load_digits = draw_nothing, load_blanks
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    left = [line]
    sys.settrace(partial(kills._kill_at, left))
    train(replace(OPTIONS, out=out, epochs=2), FRAMEWORK)
    sys.settrace(None)
    answer.write_text(str(line - left[0]))


if __name__ == "__main__":  # python -m tests.fake KIND ...
    framework = Framework("fake", ("numpy",), globals()[sys.argv.pop(1)], no_mnist)
    run_command(TrainOptions, lambda options: train(options, framework), "python -m tests.fake")
