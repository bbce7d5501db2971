"""What the training benchmark times: this project's trainers and the two hand-written scripts.

Each is made in a process of its own, see `benchmarks.workers.Worker`. Its methods return when the device has
finished.
"""

import importlib
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from recipe.checkpoint import initial_tensors
from recipe.data import GOAL, Split
from recipe.mnist import ORIGINALS
from recipe.networks import get_network
from recipe.plan import make_plans, steps_per_epoch
from recipe.recipes import Recipe
from recipe.run import Trainer

LABELS = {"torch-script": "PyTorch script", "torch": "PyTorch", "jax-script": "Flax script", "jax": "Flax"}


@dataclass(frozen=True)
class Contender:
    """One row of the table."""

    kind: str  # a key of LABELS
    network: str
    recipe: Recipe  # the scripts use its batch only; all else is written in them
    device: str = "cpu"  # or cuda
    precision: str = "float32"

    @property
    def is_script(self) -> bool:
        """Whether it is a hand-written script."""
        return self.kind.endswith("-script")

    @property
    def label(self) -> str:
        """Its name for a person."""
        return LABELS[self.kind] + ("" if self.precision == "float32" else f" {self.precision}")


def make(contender: Contender, split: Split) -> "Ours | TorchScript | FlaxScript":
    """The contender with its model and its data."""
    return {"torch-script": TorchScript, "jax-script": FlaxScript}.get(contender.kind, Ours)(contender, split)


class Ours:
    """One of this project's trainers."""

    def __init__(self, contender: Contender, split: Split):
        self.contender = contender
        self.network, self.images = get_network(contender.network), len(split.train_images)
        framework = importlib.import_module(f"{contender.kind}_impl.train").FRAMEWORK
        self.trainer: Trainer = framework.trainer(
            self.network, contender.recipe, split, contender.device, contender.precision
        )
        self.start(contender.recipe.epochs)
        self.plan, self.position = next(self.plans), 0

    def start(self, epochs: int, seed: int = 0) -> None:
        """Go back to the initial weights, for a schedule of so many epochs."""
        recipe = replace(self.contender.recipe, epochs=epochs)
        self.trainer.load(initial_tensors(self.network, recipe, seed, self.contender.precision))
        steps = epochs * steps_per_epoch(recipe, self.images)
        self.plans = make_plans(self.network, recipe, seed, self.images, 0, steps)

    def run_steps(self, steps: int) -> None:
        """Train for some steps of the first epoch; start it again where too few are left."""
        if self.position + steps > self.plan.steps:
            self.position = 0
        self.trainer.train(self.plan.part(self.position, self.position + steps), lambda _: None)
        self.position += steps

    def run_epoch(self) -> float:
        """Train for the next epoch, drawing its randomness included; returns seconds."""
        began = time.perf_counter()
        self.trainer.train(next(self.plans), lambda _: None)
        return time.perf_counter() - began

    def run_only_epoch(self) -> tuple[float, float]:
        """Train from the start on a schedule of one epoch; returns seconds and validation accuracy."""
        self.start(epochs=1)
        return self.run_epoch(), self.trainer.evaluate()[1]

    def run_to_target(self, epochs: int, seed: int, target: float = GOAL) -> dict[str, Any]:
        """Train from the start, on a schedule of so many epochs, until one ends with the target accuracy.

        The seconds leave out validation, and compilation if an epoch was run before.
        """
        self.start(epochs, seed)
        seconds, accuracies = 0.0, [0.0]
        while accuracies[-1] < target and len(accuracies) <= epochs:
            seconds += self.run_epoch()
            accuracies.append(self.trainer.evaluate()[1])
        return {
            "epochs": len(accuracies) - 1,
            "seconds": seconds,
            "reached": accuracies[-1] >= target,
            "best": max(accuracies),
        }

    def profile(self, steps: int) -> dict[str, float]:
        """Milliseconds a step of each operation, the longest first, from the framework's own profiler."""
        self.run_steps(steps)
        self.run_steps(steps)
        times = self._profile_torch(steps) if self.contender.kind == "torch" else self._profile_jax(steps)
        return {name: milliseconds / steps for name, milliseconds in times.most_common()}

    def _profile_torch(self, steps: int) -> Counter[str]:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            self.run_steps(steps)
        times: Counter[str] = Counter()
        for event in profiler.key_averages():
            times[short_name(event.key)] += event.self_cpu_time_total / 1e3
        return times

    def _profile_jax(self, steps: int) -> Counter[str]:
        import jax

        with tempfile.TemporaryDirectory(prefix="lockstep-") as folder:
            with jax.profiler.trace(folder):
                self.run_steps(steps)
            (path,) = Path(folder).rglob("*.xplane.pb")
            trace = jax.profiler.ProfileData.from_file(str(path))
        times: Counter[str] = Counter()
        for event in (event for plane in trace.planes for line in plane.lines for event in line.events):
            if any(key == "hlo_op" for key, _ in event.stats) and not event.name.startswith("while"):
                times[re.sub(r"[.\d]+$", "", event.name)] += event.duration_ns / 1e6
        return times


def short_name(event: str) -> str:
    """An event of PyTorch's profiler; compiled kernels, whose names list all they do, by the main part."""
    if event.startswith("## Call CompiledFxGraph"):
        return "calls of compiled graphs"
    if "cpp_fused_" in event:
        main = next((part for part in ("max_pool", "batch_norm") if part in event), None)
        return f"fused kernels with {main}" if main else "fused kernels, others"
    return event


class TorchScript:
    """`benchmarks.baselines.torch_script`."""

    def __init__(self, contender: Contender, split: Split):
        from benchmarks.baselines import torch_script

        self.script, self.device = torch_script, contender.device
        self.model, self.optimizer = torch_script.make_model(contender.network, contender.device)
        with tempfile.TemporaryDirectory(prefix="lockstep-") as root:
            write_originals(split, Path(root) / "MNIST" / "raw")
            self.loader = torch_script.make_loader(root, True, contender.device, contender.recipe.batch)
        self.batches = repeat(self.loader)

    def run_steps(self, steps: int) -> None:
        """Train for some steps; each of them reads its loss, so the last is finished."""
        self.script.train(self.model, self.optimizer, islice(self.batches, steps), self.device)

    def run_epoch(self) -> float:
        """Train on all images once; returns seconds."""
        began = time.perf_counter()
        self.script.train(self.model, self.optimizer, self.loader, self.device)
        return time.perf_counter() - began


class FlaxScript:
    """`benchmarks.baselines.flax_script`."""

    def __init__(self, contender: Contender, split: Split):
        from benchmarks.baselines import flax_script

        self.script, self.split, self.batch = flax_script, split, contender.recipe.batch
        self.model, self.optimizer, self.metrics = flax_script.make_model(contender.network)
        self.rng = np.random.default_rng(0)
        self.batches = repeat(self)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """The batches of one epoch."""
        return self.script.make_batches(
            self.split.train_images, self.split.train_labels, self.rng, self.batch
        )

    def run_steps(self, steps: int) -> None:
        """Train for some steps; their metrics are read at the end, so the last is finished."""
        self.script.train(self.model, self.optimizer, self.metrics, islice(self.batches, steps))

    def run_epoch(self) -> float:
        """Train on all images once; returns seconds."""
        began = time.perf_counter()
        self.script.train(self.model, self.optimizer, self.metrics, self)
        return time.perf_counter() - began


def repeat(batches: Any) -> Iterator[Any]:
    """The batches of epoch after epoch."""
    while True:
        yield from batches


def write_originals(split: Split, folder: Path) -> None:
    """Write images and labels as the four files that torchvision reads."""
    arrays = (split.train_images, split.train_labels, split.val_images, split.val_labels)
    folder.mkdir(parents=True)
    for original, array in zip(ORIGINALS, arrays, strict=True):
        header = np.array([0x0800 + array.ndim, *array.shape], ">i4")  # 0x08 means uint8
        (folder / original.name).write_bytes(header.tobytes() + np.ascontiguousarray(array).tobytes())
