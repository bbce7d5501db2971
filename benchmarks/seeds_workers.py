"""Time many seeds at once by each way of computing their convolutions, and train them by the fastest."""

import importlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

from benchmarks.seeds_together import epoch_plans, train_seeds_together
from benchmarks.training_contenders import Contender
from benchmarks.training_workers import Worker
from recipe import report
from recipe.data import Split
from recipe.errors import UserError
from recipe.networks import get_network
from recipe.plan import steps_per_epoch
from recipe.recipes import Recipe
from recipe.run import initial_tensors

START_SECONDS = 150.0  # to compile and take some steps; a way that takes longer is left out
TRAIN_SECONDS = 3600.0
WAYS = {"products": True, "grouped": False}  # how the convolutions of many seeds are computed


class SeedsContestant:
    """Many seeds in a process of their own (see `benchmarks.training_workers.Worker`)."""

    def __init__(self, contender: Contender, split: Split, *, seeds: int, products: bool):
        self.contender, self.split, self.seeds, self.products = contender, split, range(seeds), products
        self.network = get_network(contender.network)
        make = importlib.import_module(f"{contender.kind}_impl.seeds").SeedsTrainer
        self.trainer = make(
            self.network, contender.recipe, split, contender.device, contender.precision, seeds, products
        )
        start = [
            initial_tensors(self.network, contender.recipe, seed, contender.precision) for seed in self.seeds
        ]
        self.trainer.load(start)
        self.plans = next(epoch_plans(self.network, contender.recipe, self.seeds, len(split.train_images)))

    def take(self, steps: int) -> None:
        """Take the first steps of the first epoch."""
        self.trainer.train([plan[:steps] for plan in self.plans])

    def train(self) -> dict[int, dict[str, Any]]:
        """Train all seeds from the start; see `train_seeds_together`."""
        del self.trainer
        contender = self.contender
        return train_seeds_together(
            contender.kind, self.network, contender.recipe, self.split, self.seeds, contender.device,
            contender.precision, self.products,
        )  # fmt: skip


def measure_seeds(
    network: str,
    recipe: Recipe,
    split: Split,
    *,
    kinds: Sequence[str],
    seeds: int,
    steps: int,
    device: str,
    deadline: float,
) -> dict[str, Any]:
    """Time steps of many seeds by each of `WAYS`, then train them to the end by the fastest.

    Args:
        network: its name.
        recipe: of every seed, resolved.
        split: the data.
        kinds: of torch and jax.
        seeds: how many, from 0 on.
        steps: to time, once each way.
        device: cpu or cuda.
        deadline: ``time.monotonic()`` by which all must be done; what would take longer is not begun.

    Returns:
        For each framework ``step_ms`` (by way; None where it failed), ``way`` and ``seeds`` as
        `train_seeds_together` gives them, or ``failure``.
    """
    found: dict[str, Any] = {}
    for kind in kinds:
        contender = Contender(kind, network, recipe, device)
        with ExitStack() as stack:
            workers, step_ms, failures = {}, {}, []
            with ThreadPoolExecutor(len(WAYS)) as pool:
                begun = {
                    way: pool.submit(start_seeds, stack, contender, split, seeds, products, steps, deadline)
                    for way, products in WAYS.items()
                }
            for way, start in begun.items():
                try:
                    workers[way] = start.result()
                    step_ms[way] = 1e3 * workers[way].call("take", steps)[0] / steps
                except UserError as error:
                    step_ms[way] = None
                    failures.append(f"{way}: {error}")
            found[kind] = {"step_ms": step_ms}
            done = {way: each for way, each in step_ms.items() if each is not None}
            report.show_line(
                f"{network}, {kind}, {seeds} seeds at once: "
                + ", ".join([*(f"{way} {each:.2f} ms a step" for way, each in done.items()), *failures])
            )
            if not done:
                found[kind]["failure"] = "; ".join(failures)
                continue
            way = min(done, key=lambda way: done[way])
            for other, worker in workers.items():
                if other != way:
                    worker.close()
            found[kind]["way"] = way
            expected = done[way] / 1e3 * recipe.epochs * steps_per_epoch(recipe, len(split.train_images))
            if time.monotonic() + expected > deadline:
                found[kind]["failure"] = f"no time left for training: it would take {expected:.0f} s"
                report.show_notice(f"{network}, {kind}, {seeds} seeds: {found[kind]['failure']}")
                continue
            try:
                taken, trained = workers[way].call("train")
                found[kind] |= {
                    "seconds": taken,
                    "seeds": {str(seed): each for seed, each in trained.items()},
                }
            except UserError as error:
                found[kind]["failure"] = str(error)
                report.show_notice(f"{network}, {kind}: {error}")
    return found


def start_seeds(
    stack: ExitStack,
    contender: Contender,
    split: Split,
    seeds: int,
    products: bool,
    steps: int,
    deadline: float,
) -> Worker:
    """A worker that has compiled and warmed up by taking the steps twice; ``stack`` will close it."""
    make = partial(SeedsContestant, seeds=seeds, products=products)
    worker = stack.enter_context(
        Worker(contender, split, make=make, timeout_s=START_SECONDS, deadline=deadline)
    )
    worker.call("take", steps)
    worker.call("take", steps)
    worker.timeout_s = TRAIN_SECONDS
    return worker
