"""One seed: train it to the end of its schedule and measure its accuracy."""

import time
from importlib import import_module
from typing import Any

import numpy as np

from benchmarks.accuracy.tta import tta_accuracy
from recipe import report
from recipe.checkpoint import initial_tensors
from recipe.data import Split
from recipe.errors import UserError
from recipe.networks import Network
from recipe.plan import make_plans, steps_per_epoch
from recipe.recipes import Recipe
from recipe.run import Framework

LABELS = {"torch": "PyTorch", "jax": "Flax"}


def load_framework(name: str) -> Framework:
    """The framework ``torch`` or ``jax``, which is imported here because that takes seconds."""
    return import_module(f"{name}_impl.train").FRAMEWORK


def train_seed(
    framework: Framework, network: Network, recipe: Recipe, split: Split, seed: int, device: str
) -> dict[str, Any]:
    """Train one seed in float32 and return what was measured: accuracies 0 to 1, seconds of training.

    Raises:
        UserError: the batch is larger than the training set, or a loss is not finite.
    """
    images = len(split.train_images)
    steps = recipe.epochs * steps_per_epoch(recipe, images)
    if steps == 0:
        raise UserError(f"a batch of {recipe.batch} is more than the {images} training images")
    trainer = framework.trainer(network, recipe, split, device, "float32")
    trainer.load(initial_tensors(network, recipe, seed, "float32"))
    accuracies: list[float] = []
    seconds = train_loss = val_loss = 0.0
    with report.make_progress() as progress:
        task = progress.add_task(f"{LABELS.get(framework.name, framework.name)}, seed {seed}", total=steps)
        for plan in make_plans(network, recipe, seed, images, 0, steps):
            began = time.perf_counter()
            losses, _ = trainer.train(plan, lambda count: progress.advance(task, count))
            seconds += time.perf_counter() - began
            train_loss = float(losses.mean())
            if not np.isfinite(train_loss):
                raise UserError(f"seed {seed} diverged in epoch {len(accuracies) + 1}; use a lower lr")
            val_loss, accuracy = trainer.evaluate()
            accuracies.append(accuracy)
    return {
        "framework": framework.name,
        "seed": seed,
        "device": trainer.device_name,
        "final": accuracies[-1],
        "best": max(accuracies),
        "best_epoch": 1 + int(np.argmax(accuracies)),
        "tta": tta_accuracy(framework, network, recipe, split, trainer.tensors(), device),
        "val_loss": val_loss,
        "train_loss": train_loss,
        "seconds": round(seconds, 1),
        "accuracies": accuracies,
    }
