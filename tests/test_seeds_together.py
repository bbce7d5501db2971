"""Many seeds trained at once are each the run that its seed gives alone, in both frameworks.

Tolerance. float64: the same sums in another order. Measured here: losses and logits within 1e-15 of the run
alone and 1e-14 of the other framework, tensors within 6e-14 and 4e-13 relative to their norm. The bounds
leave a factor of ten and more and are far below what any fault at the end gives.
"""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jax_impl.ops
import jax_impl.seeds
import jax_impl.train
import torch_impl.model
import torch_impl.seeds
import torch_impl.train
from benchmarks.lockstep import relative_difference, turn_everything_on
from benchmarks.seeds_together import check_finite, train_seeds_together
from benchmarks.shifts import shifted_accuracy
from recipe.data import Split
from recipe.errors import UserError
from recipe.networks import Conv, Layer, get_network
from recipe.plan import Plan, make_plan
from recipe.recipes import Recipe, get_recipe
from recipe.run import initial_tensors
from recipe.seeds import stack_plans

LOSS_BOUND, TENSOR_BOUND = 1e-12, 5e-12  # absolute; relative to the norm
SEEDS = (0, 7)
STEPS = 4
HALVES = (slice(0, 2), slice(2, 4))  # two calls, as a run of two epochs takes
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
    return dataclasses.replace(chosen, batch=8, label_smoothing=0.1)


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
    make = IMPLEMENTATIONS[kind][1].SeedsTrainer
    trainer = make(get_network(network), chosen, split, "cpu", precision, len(SEEDS), products)
    trainer.load([initial_tensors(get_network(network), chosen, seed, precision) for seed in SEEDS])
    given = plans(network, chosen, len(split.train_images))
    parts = [trainer.train([plan[half] for plan in given]) for half in HALVES]
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
        for half in HALVES:
            outcome.losses[index, half], outcome.correct[index, half] = trainer.train(
                plan[half], lambda _: None
            )
        outcome.tensors.append(trainer.tensors())
        logits.append(trainer.predict())
        outcome.evaluation.append(trainer.evaluate())
    outcome.logits = np.stack(logits)
    return outcome


def assert_same(found: Outcome, expected: Outcome) -> None:
    np.testing.assert_allclose(found.losses, expected.losses, rtol=0, atol=LOSS_BOUND)
    np.testing.assert_array_equal(found.correct, expected.correct)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=LOSS_BOUND)
    np.testing.assert_allclose(found.evaluation, expected.evaluation, rtol=0, atol=LOSS_BOUND)
    assert len(found.tensors) == len(expected.tensors) == len(SEEDS)
    for ours, theirs in zip(found.tensors, expected.tensors, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert ours[name].shape == theirs[name].shape
            assert relative_difference(ours[name], theirs[name]) <= TENSOR_BOUND, name


# The other networks have no kind of layer that these two lack, and compiling takes a while. The steps of one
# recipe are taken with grouped convolutions, those of the other with products.
@pytest.mark.parametrize("recipe_name", ["tuned", "reference"])
@pytest.mark.parametrize("name", ["net10040", "net9954"])
def test_every_seed_is_the_run_it_is_alone_and_the_frameworks_agree(name, recipe_name, few):
    products = recipe_name == "reference"
    chosen = small(name, recipe_name)
    together = {kind: train_together(kind, name, chosen, few, products) for kind in IMPLEMENTATIONS}
    for kind, outcome in together.items():
        assert_same(outcome, train_alone(kind, name, chosen, few))
    assert_same(together["jax"], together["torch"])
    losses, logits = together["torch"].losses, together["torch"].logits
    assert len(np.unique(losses)) == losses.size, "seeds and steps differ"
    assert np.abs(logits[0] - logits[1]).max() > 1e-3


@pytest.mark.parametrize(("size", "pad"), [(3, 0), (3, 1), (1, 0)])
@pytest.mark.parametrize(("channels", "filters"), [(1, 8), (8, 16)])
def test_convolutions_of_many_seeds(size, pad, channels, filters, rng):
    """Both ways, batched over kernels, values and gradients against PyTorch's grouped convolution."""
    jax.config.update("jax_enable_x64", True)
    seeds, images, side = len(SEEDS), 4, 7
    x = rng.normal(size=(images, seeds * channels, side, side))
    module = torch_impl.model.build_layer(recipe_layer(channels, filters, size, pad, side), seeds)
    assert isinstance(module, torch.nn.Conv2d)
    module.double()
    results = []
    for convolve in (torch_impl.model.convolve, torch_impl.model.convolve_by_products):
        given = torch.from_numpy(x).requires_grad_()
        y = convolve(module, given)
        module.zero_grad()
        y.square().sum().backward()
        assert module.weight.grad is not None and given.grad is not None
        results.append([tensor.detach().clone() for tensor in (y, given.grad, module.weight.grad)])
    for found, expected in zip(results[1], results[0], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)

    apart = jnp.asarray(x.reshape(images, seeds, channels, side, side).transpose(1, 0, 3, 4, 2))
    weight = module.weight.numpy(force=True).reshape(seeds, filters, channels, size, size)
    kernels = jnp.asarray(weight.transpose(0, 3, 4, 2, 1))
    y, gradient_x, gradient_weight = (np.asarray(each) for each in results[0])
    expected = (
        y.reshape(images, seeds, filters, *y.shape[2:]).transpose(1, 0, 3, 4, 2),
        gradient_x.reshape(images, seeds, channels, side, side).transpose(1, 0, 3, 4, 2),
        gradient_weight.reshape(weight.shape).transpose(0, 3, 4, 2, 1),
    )
    for convolve in (jax_impl.ops.conv2d, jax_impl.ops.conv2d_by_products):
        together = jax.vmap(lambda x, kernel, convolve=convolve: convolve(x, kernel, pad))
        y, pull = jax.vjp(together, apart, kernels)
        for found, wanted in zip((y, *pull(2 * y)), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


def recipe_layer(channels: int, filters: int, size: int, pad: int, side: int) -> Layer:
    smaller = side + 2 * pad - size + 1
    shapes = (channels, side, side), (filters, smaller, smaller)
    return Layer("conv1", Conv(filters, size, pad, bias=False), *shapes)


def test_accuracies_of_many_seeds_are_those_of_each(few):
    """To the end of a recipe, with what `benchmarks.seeds` says of each seed."""
    few = few._replace(train_images=few.train_images[:200], train_labels=few.train_labels[:200])
    chosen = dataclasses.replace(get_recipe("net9954", "tuned"), epochs=2, batch=64)
    network = get_network("net9954")
    found = train_seeds_together("torch", network, chosen, few, SEEDS, "cpu", "float64")
    assert list(found) == list(SEEDS)
    framework = torch_impl.train.FRAMEWORK
    trainer = framework.trainer(network, chosen, few, "cpu", "float64")
    for seed in SEEDS:
        trainer.load(initial_tensors(network, chosen, seed, "float64"))
        evaluations = []
        for epoch in range(2):
            trainer.train(make_plan(network, chosen, seed, 200, 3 * epoch, 3 * epoch + 3), lambda _: None)
            evaluations.append(trainer.evaluate())
        assert found[seed]["accuracies"] == [accuracy for _, accuracy in evaluations]
        assert found[seed]["val_loss"] == pytest.approx(evaluations[-1][0], abs=LOSS_BOUND)
        shifted = shifted_accuracy(framework, network, chosen, few, trainer.tensors(), "float64")
        assert found[seed]["shifted"] == shifted


def test_a_loss_that_is_no_number_is_refused():
    losses = np.ones((5, 2))
    losses[3, 1] = np.nan
    with pytest.raises(UserError, match="seed 7: the loss is nan at step 3 of epoch 4"):
        check_finite(losses, (0, 7), 4)


# ---------------------------------------------------------------------------- the tests fail when they should


def other_seeds_dropout(plan: Plan) -> Plan:
    keys = plan.keys.copy()
    keys[:, 1] = keys[:, 0]
    return dataclasses.replace(plan, keys=keys)


def other_seeds_images(plan: Plan) -> Plan:
    return dataclasses.replace(plan, images=plan.images[:, ::-1].copy())


def one_warp_unit(plan: Plan) -> Plan:
    maps = plan.maps.copy()
    maps[0, 1, 0, 2] += 256  # one image of one seed by 1/256 pixel
    return dataclasses.replace(plan, maps=maps)


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("torch", other_seeds_dropout),
        ("torch", other_seeds_images),
        ("torch", one_warp_unit),
        ("jax", other_seeds_dropout),
    ],
)
def test_a_deliberate_fault_is_found(kind, fault, few, monkeypatch):
    module, chosen = IMPLEMENTATIONS[kind][1], small("net9954", "tuned")
    original = module.stack_plans
    monkeypatch.setattr(module, "stack_plans", lambda plans: fault(original(plans)))
    found = train_together(kind, "net9954", chosen, few)
    with pytest.raises(AssertionError):
        assert_same(found, train_alone("torch", "net9954", chosen, few))


def test_plans_of_different_schedules_are_refused(few):
    chosen = small("net9954", "tuned")
    ours = plans("net9954", chosen, len(few.train_images), [0])
    theirs = plans("net9954", dataclasses.replace(chosen, peak_rate=0.2), len(few.train_images), [1])
    with pytest.raises(AssertionError):
        stack_plans([*ours, *theirs])


COMPILED = """
import torch._dynamo.utils as dynamo
from tests import test_seeds_together as tests
from recipe import data
split = data.split(data.load_digits(), "test")
few = split._replace(val_images=split.val_images[:60], val_labels=split.val_labels[:60])
chosen = tests.small("net9954", "tuned")
found = tests.train_together("torch", "net9954", chosen, few, products=True)
assert dynamo.counters["stats"]["unique_graphs"] == 1 and not dynamo.counters["graph_break"]
tests.assert_same(found, tests.train_alone("torch", "net9954", chosen, few))
"""


@pytest.mark.slow
def test_the_step_of_many_seeds_compiles_as_one_graph():
    environment = {name: value for name, value in os.environ.items() if name != "TORCHDYNAMO_DISABLE"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
