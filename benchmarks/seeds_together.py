"""Train many seeds at once on one device, which is how a GPU has something to do with networks this small."""

import importlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.machine import processor_name
from benchmarks.shifts import averaged_accuracy, shift_validation
from recipe import report
from recipe.data import Split
from recipe.errors import UserError
from recipe.networks import Network
from recipe.plan import Plan, make_plan, steps_per_epoch
from recipe.recipes import Recipe
from recipe.run import initial_tensors


def train_seeds_together(
    framework: str,
    network: Network,
    recipe: Recipe,
    split: Split,
    seeds: Sequence[int],
    device: str,
    precision: str = "float32",
    products: bool | None = None,
) -> dict[int, dict[str, Any]]:
    """Train all seeds at once to the end of the recipe.

    Args:
        framework: torch or jax.
        network: of every seed.
        recipe: of every seed, resolved.
        split: the data.
        seeds: which.
        device: auto, cpu or cuda.
        precision: of weights and arithmetic.
        products: see `torch_impl.seeds.SeedsTrainer`.

    Returns:
        For each seed what `benchmarks.seeds.summarise_run` says of one; ``seconds`` is its share of the time
        that training them all took, ``seeds_at_once`` how many those were.

    Raises:
        UserError: a loss is not finite, or there is no such device.
    """
    make = importlib.import_module(f"{framework}_impl.seeds").SeedsTrainer
    trainer = make(network, recipe, split, device, precision, len(seeds), products)
    trainer.load([initial_tensors(network, recipe, seed, precision) for seed in seeds])
    evaluations, seconds = [], 0.0
    for epoch, plans in enumerate(epoch_plans(network, recipe, seeds, len(split.train_images)), start=1):
        began = time.perf_counter()
        losses, _ = trainer.train(plans)
        seconds += time.perf_counter() - began
        check_finite(losses, seeds, epoch)
        evaluations.append(trainer.evaluate())
        accuracies = np.array([accuracy for _, accuracy in evaluations[-1]])
        report.show_line(
            f"{framework}, {network.name}, {len(seeds)} seeds, epoch {epoch} of {recipe.epochs}: "
            f"mean {100 * accuracies.mean():.2f} %, minimum {100 * accuracies.min():.2f} %, {seconds:.1f} s"
        )
    judge = make(network, recipe, shift_validation(split), device, precision, len(seeds), products)
    judge.load(trainer.tensors())
    shifted = [averaged_accuracy(logits, split.val_labels) for logits in judge.predict()]
    found = {}
    for index, seed in enumerate(seeds):
        accuracies = [evaluation[index][1] for evaluation in evaluations]
        found[seed] = {
            "final": accuracies[-1],
            "best": max(accuracies),
            "best_epoch": 1 + int(np.argmax(accuracies)),
            "shifted": shifted[index],
            "val_loss": evaluations[-1][index][0],
            "seconds": round(seconds / len(seeds), 1),
            "seeds_at_once": len(seeds),
            "device": trainer.device,
            "processor": processor_name(),
            "accuracies": accuracies,
        }
    return found


def epoch_plans(network: Network, recipe: Recipe, seeds: Sequence[int], images: int) -> Iterator[list[Plan]]:
    """The plan of every seed, epoch after epoch; while one is used, the next is drawn."""
    steps = steps_per_epoch(recipe, images)
    with ThreadPoolExecutor() as pool:

        def draw(epoch: int) -> list[Any]:
            start, stop = epoch * steps, (epoch + 1) * steps
            return [pool.submit(make_plan, network, recipe, seed, images, start, stop) for seed in seeds]

        drawn = draw(0)
        for epoch in range(recipe.epochs):
            plans = [plan.result() for plan in drawn]
            drawn = draw(epoch + 1) if epoch + 1 < recipe.epochs else []
            yield plans


def check_finite(losses: np.ndarray, seeds: Sequence[int], epoch: int) -> None:
    """Refuse losses (S, seeds) of one epoch that are no numbers.

    Raises:
        UserError: naming the first step and seed.
    """
    bad = np.argwhere(~np.isfinite(losses))
    if len(bad):
        step, index = bad[0]
        raise UserError(
            f"seed {seeds[index]}: the loss is {losses[step, index]} at step {step} of epoch {epoch}; use "
            "another recipe"
        )
