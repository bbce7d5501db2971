"""What the training benchmark times: this project's trainers, the two scripts, and a matrix product.

Each lives in a process of its own (see `benchmarks.training_workers`), so PyTorch and JAX are imported only
where they are used, and no contender finds the settings or the memory of another.
"""

import importlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from recipe.data import ORIGINALS, Split
from recipe.networks import Conv, Network, get_network
from recipe.plan import Plan, make_plan, steps_per_epoch
from recipe.recipes import Recipe
from recipe.run import Trainer, initial_tensors

SCRIPTED = ("net10040", "net9954")  # the networks that the hand-written scripts train
TARGET = 0.994  # the task's validation accuracy
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
MATRIX_SECONDS = 0.3  # of products in one measurement


@dataclass(frozen=True)
class Contender:
    """One row of the table."""

    kind: str  # one of LABELS
    network: str
    recipe: Recipe  # of the scripts only the batch is used: the rest is written in them
    device: str = "cpu"  # or cuda
    precision: str = "float32"

    @property
    def label(self) -> str:
        """What a person calls it."""
        return LABELS[self.kind]


LABELS = {
    "torch": "PyTorch",
    "jax": "Flax",
    "torch-script": "PyTorch script",
    "jax-script": "Flax script",
    "matrix-product": "matrix product",
    "lockstep": "lockstep",  # both trainers, see benchmarks.gpu
}


class Contestant(Protocol):
    """A contender at work. Every call returns when the device has finished."""

    def take(self, steps: int) -> Any:
        """Take training steps, going on from the last call."""

    def epoch(self) -> Any:
        """Take one whole epoch, with all that belongs to it but the validation."""


def make_contestant(contender: Contender, split: Split) -> Contestant:
    """Build a contender with its data."""
    makers = {"torch-script": TorchScript, "jax-script": FlaxScript, "matrix-product": MatrixProduct}
    return makers.get(contender.kind, LockstepTrainer)(contender, split)


class LockstepTrainer:
    """One of this project's trainers."""

    def __init__(self, contender: Contender, split: Split):
        self.precision, self.recipe = contender.precision, contender.recipe
        self.network, self.images = get_network(contender.network), len(split.train_images)
        framework = importlib.import_module(f"{contender.kind}_impl.train").FRAMEWORK
        self.trainer: Trainer = framework.trainer(
            self.network, contender.recipe, split, contender.device, contender.precision
        )
        self.start()

    def start(self) -> None:
        """Go back to the initial weights."""
        self.trainer.load(initial_tensors(self.network, self.recipe, 0, self.precision))
        self.epochs, self.position = 0, 0
        self.plan = self.epoch_plan()

    def epoch_plan(self) -> Plan:
        """The plan of the epoch after those done."""
        steps = steps_per_epoch(self.recipe, self.images)
        start = self.epochs % self.recipe.epochs * steps
        return make_plan(self.network, self.recipe, 0, self.images, start, start + steps)

    def take(self, steps: int) -> None:
        """Take steps of the first epoch, and again from its start where too few are left."""
        if self.position + steps > len(self.plan):
            self.position = 0
        self.trainer.train(self.plan[self.position : self.position + steps], lambda _: None)
        self.position += steps

    def epoch(self) -> None:
        """Draw an epoch's chance and train on it."""
        self.trainer.train(self.epoch_plan(), lambda _: None)
        self.epochs += 1

    def accuracy_of_an_epoch(self) -> dict[str, float]:
        """Train for one epoch on a schedule of one epoch; returns final validation loss and accuracy."""
        self.recipe = replace(self.recipe, epochs=1)
        self.start()
        self.epoch()
        loss, accuracy = self.trainer.evaluate()
        return {"val_loss": loss, "val_accuracy": accuracy}

    def time_to_target(self, epochs: int, target: float = TARGET) -> dict[str, Any]:
        """Train from the start, on a schedule of so many epochs, until one ends with the target accuracy.

        Returns:
            Seconds of training, epochs, whether the target was reached, and the accuracy after each epoch.
            Validation is left out of the seconds, and compilation: one epoch is taken before.
        """
        self.recipe = replace(self.recipe, epochs=epochs)
        self.epoch()
        self.trainer.evaluate()
        self.start()
        seconds, accuracies = 0.0, []
        while not accuracies or (accuracies[-1] < target and self.epochs < epochs):
            began = time.perf_counter()
            self.epoch()
            seconds += time.perf_counter() - began
            accuracies.append(self.trainer.evaluate()[1])
        return {
            "seconds": seconds,
            "epochs": self.epochs,
            "of": epochs,
            "reached": accuracies[-1] >= target,
            "accuracies": accuracies,
        }


class TorchScript:
    """`benchmarks.baselines.torch_script`."""

    def __init__(self, contender: Contender, split: Split):
        from benchmarks.baselines import torch_script

        self.script, self.device = torch_script, contender.device
        self.model, self.optimizer = torch_script.make_model(contender.network, contender.device)
        with tempfile.TemporaryDirectory(prefix="lockstep-") as root:
            write_originals(split, Path(root) / "MNIST" / "raw")
            self.loader = torch_script.make_loader(root, True, contender.device, contender.recipe.batch)
        self.batches = forever(self.loader)

    def take(self, steps: int) -> None:
        """Take steps; every one of them reads its loss, so the last is finished."""
        self.script.train(self.model, self.optimizer, islice(self.batches, steps), self.device)

    def epoch(self) -> None:
        """Go through the loader once."""
        self.script.train(self.model, self.optimizer, self.loader, self.device)


class FlaxScript:
    """`benchmarks.baselines.flax_script`."""

    def __init__(self, contender: Contender, split: Split):
        from benchmarks.baselines import flax_script

        self.script, self.split, self.batch = flax_script, split, contender.recipe.batch
        self.work = flax_script.make_model(contender.network)
        self.rng = np.random.default_rng(0)
        self.batches = forever(self)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """One epoch's batches."""
        return self.script.make_batches(
            self.split.train_images, self.split.train_labels, self.rng, self.batch
        )

    def take(self, steps: int) -> None:
        """Take steps; their metrics are read at the end, so the last is finished."""
        self.script.train(*self.work, islice(self.batches, steps))

    def epoch(self) -> None:
        """Go through the images once."""
        self.script.train(*self.work, self)


def forever(batches: Any) -> Iterator[Any]:
    """Epoch after epoch of batches."""
    while True:
        yield from batches


def write_originals(split: Split, folder: Path) -> None:
    """Write images and labels as the four files that torchvision reads."""
    arrays = (split.train_images, split.train_labels, split.val_images, split.val_labels)
    folder.mkdir(parents=True)
    for original, array in zip(ORIGINALS, arrays, strict=True):
        header = np.array([0x0800 + array.ndim, *array.shape], ">i4")  # 0x08 means uint8
        (folder / original.name).write_bytes(header.tobytes() + np.ascontiguousarray(array).tobytes())


class MatrixProduct:
    """Square float32 matrices, as the measure of what the device can compute."""

    def __init__(self, contender: Contender, split: Split):
        import torch

        self.torch, self.device = torch, contender.device
        torch.backends.cuda.matmul.fp32_precision = "ieee"  # as the trainers compute
        side = MATRIX_SIDE[contender.device]
        self.a, self.b, self.out = (torch.ones((side, side), device=contender.device) for _ in range(3))

    def take(self, steps: int) -> float:
        """Multiply for `MATRIX_SECONDS`, whatever the number of steps; returns FLOP per second."""
        self.multiply()
        products, began = 0, time.perf_counter()
        while (seconds := time.perf_counter() - began) < MATRIX_SECONDS:
            self.multiply()
            products += 1
        return products * 2 * len(self.a) ** 3 / seconds

    def epoch(self) -> None:
        """There is none."""

    def multiply(self) -> None:
        """One product, finished."""
        self.torch.mm(self.a, self.b, out=self.out)
        if self.device == "cuda":
            self.torch.cuda.synchronize()


def step_flops(network: Network, batch: int) -> int:
    """Floating-point operations of the convolutions in one training step.

    A convolution with a K x K kernel, I channels in and O channels of H x W out takes 2 K K I O H W
    operations an image forward (zeros at the border counted, as everybody does), and as many again for each
    of its two gradients; the first layer needs no gradient of its input. All else is left out: batch norm,
    ReLU, dropout and pooling are bound by memory.
    """
    convolutions = [layer for layer in network.layers if isinstance(layer.operation, Conv)]
    forward = [
        2 * layer.operation.kernel**2 * layer.in_shape[0] * int(np.prod(layer.out_shape))
        for layer in convolutions
        if isinstance(layer.operation, Conv)
    ]
    return batch * (3 * sum(forward) - forward[0])


def with_batch(recipe: Recipe, batch: int | None) -> Recipe:
    """The recipe with another batch size, if one is given."""
    return replace(recipe, batch=batch or recipe.batch)
