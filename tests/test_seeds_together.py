"""Many seeds trained at once are each the run that its seed gives alone, in both frameworks.

Tolerance. float64: the same sums in another order, which moves a gradient by about 1e-14 relative and, over
the few steps here, nothing by more than `BOUND`; absolute for losses and logits, which are about 1, relative
to the norm for tensors. The smallest fault below moves a loss by 1e-5 or more.
"""

import dataclasses
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch

import jax_impl.model
import jax_impl.seeds
import jax_impl.train
import recipe.seeds
import torch_impl.model
import torch_impl.seeds
import torch_impl.train
from benchmarks.lockstep import relative_difference, turn_everything_on
from recipe.data import Split
from recipe.networks import NETWORKS, get_network
from recipe.plan import Plan, make_plan
from recipe.recipes import RECIPES, Recipe, get_recipe
from recipe.run import initial_tensors

BOUND = 1e-12
SEEDS = (0, 1, 7)
STEPS = 3
IMPLEMENTATIONS = {"torch": (torch_impl.train, torch_impl.seeds), "jax": (jax_impl.train, jax_impl.seeds)}


@pytest.fixture(autouse=True)
def default_precision():
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="module")
def few(digits) -> Split:
    return digits._replace(val_images=digits.val_images[:60], val_labels=digits.val_labels[:60])


def small(network: str, recipe_name: str) -> Recipe:
    """Dropout, augmentation and label smoothing on, and few images a step."""
    chosen = turn_everything_on(get_recipe(network, recipe_name))
    return dataclasses.replace(chosen, batch=16, label_smoothing=0.1)


def plans(network: str, chosen: Recipe, images: int, seeds=SEEDS) -> list[Plan]:
    return [make_plan(get_network(network), chosen, seed, images, 0, STEPS) for seed in seeds]


@dataclasses.dataclass
class Outcome:
    """What training left, the seed first."""

    losses: np.ndarray
    correct: np.ndarray
    tensors: list[dict[str, np.ndarray]]
    logits: np.ndarray
    evaluation: list[tuple[float, float]]


def train_together(
    kind: str, network: str, chosen: Recipe, split: Split, products: bool = False, precision: str = "float64"
) -> Outcome:
    """In two calls, as a run of two epochs takes."""
    make = IMPLEMENTATIONS[kind][1].SeedsTrainer
    trainer = make(get_network(network), chosen, split, "cpu", precision, len(SEEDS), products)
    trainer.load([initial_tensors(get_network(network), chosen, seed, precision) for seed in SEEDS])
    given = plans(network, chosen, len(split.train_images))
    parts = [trainer.train([plan[steps] for plan in given]) for steps in (slice(0, 1), slice(1, STEPS))]
    losses, correct = (np.concatenate(arrays).T for arrays in zip(*parts, strict=True))
    return Outcome(losses, correct, trainer.tensors(), trainer.predict(), trainer.evaluate())


def train_alone(kind: str, network: str, chosen: Recipe, split: Split) -> Outcome:
    """One seed after the other."""
    trainer = IMPLEMENTATIONS[kind][0].Trainer(get_network(network), chosen, split, "cpu", "float64")
    outcome = Outcome(*(np.empty((len(SEEDS), STEPS)) for _ in range(2)), [], np.empty(0), [])
    logits = []
    for index, (seed, plan) in enumerate(
        zip(SEEDS, plans(network, chosen, len(split.train_images)), strict=True)
    ):
        trainer.load(initial_tensors(get_network(network), chosen, seed, "float64"))
        outcome.losses[index], outcome.correct[index] = trainer.train(plan, lambda _: None)
        outcome.tensors.append(trainer.tensors())
        logits.append(trainer.predict())
        outcome.evaluation.append(trainer.evaluate())
    outcome.logits = np.stack(logits)
    return outcome


def assert_same(found: Outcome, expected: Outcome) -> None:
    np.testing.assert_allclose(found.losses, expected.losses, rtol=0, atol=BOUND)
    np.testing.assert_array_equal(found.correct, expected.correct)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=BOUND)
    np.testing.assert_allclose(found.evaluation, expected.evaluation, rtol=0, atol=BOUND)
    assert len(found.tensors) == len(expected.tensors) == len(SEEDS)
    for ours, theirs in zip(found.tensors, expected.tensors, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert ours[name].shape == theirs[name].shape
            assert relative_difference(ours[name], theirs[name]) <= BOUND, name


@pytest.mark.parametrize("recipe_name", RECIPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_seed_is_the_run_it_is_alone_and_the_frameworks_agree(name, recipe_name, few):
    chosen = small(name, recipe_name)
    together = {kind: train_together(kind, name, chosen, few) for kind in IMPLEMENTATIONS}
    for kind, outcome in together.items():
        assert_same(outcome, train_alone(kind, name, chosen, few))
    assert_same(together["jax"], together["torch"])
    losses = together["torch"].losses
    assert len(np.unique(losses)) == losses.size, "seeds and steps differ"


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", IMPLEMENTATIONS)
def test_convolutions_as_products_are_the_same(kind, name, few):
    chosen = small(name, "tuned")
    assert_same(
        train_together(kind, name, chosen, few, products=True), train_together(kind, name, chosen, few)
    )
