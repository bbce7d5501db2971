"""The same model, step by step, in both frameworks: the claim the project stands for.

Tolerances. float64: one step rounds at 1e-16 relative; batch norm's sums over 100,000 elements and the chain
of ten layers make that about 1e-12 in a gradient. The bounds leave a factor of a hundred or more and are far
below what any difference of definition gives (see the faults at the end). float32: rounding is 1e-7 and a few
dozen roundings add up in a logit.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import benchmarks.lockstep
import jax_impl.model
import jax_impl.ops
import jax_impl.train
import recipe.plan
import torch_impl.model
import torch_impl.train
from benchmarks.lockstep import Comparison, run_lockstep, turn_everything_on
from recipe.chance import initial_weights
from recipe.data import Split
from recipe.networks import NETWORKS, Network, get_network
from recipe.recipes import RECIPES, get_recipe
from recipe.run import initial_tensors

LOSS_BOUND, TENSOR_BOUND = 1e-10, 1e-9  # absolute; relative to the norm


@pytest.fixture
def x64():
    import jax

    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def random_tensors(network: Network, rng: np.random.Generator, dtype: str) -> dict[str, np.ndarray]:
    """Weights from the recipe, but batch norms far from the identity."""
    tensors = initial_weights(network, 0)
    for name, tensor in tensors.items():
        if name.startswith("norm"):
            low, high = (0.5, 2.0) if name.endswith("var") else (-1.0, 1.0)
            tensors[name] = rng.uniform(low, high, tensor.shape)
    return {name: tensor.astype(dtype) for name, tensor in tensors.items()}


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("train", [True, False])
def test_same_weights_give_the_same_logits_and_statistics(network, dtype, bound, train, rng, x64):
    tensors = random_tensors(network, rng, dtype)
    images = rng.normal(size=(32, 1, 28, 28)).astype(dtype)

    ours = torch_impl.model.ConvNet(network, 0.0).to(getattr(torch, dtype))
    torch_impl.model.load_tensors(ours, tensors)
    ours.train(train)
    expected = ours(torch.from_numpy(images)).detach().numpy()

    graph, parameters, statistics = nnx.split(jax_impl.model.ConvNet(network, 0.0), nnx.Param, nnx.BatchStat)
    theirs = nnx.merge(
        graph,
        jax_impl.model.load_tensors(parameters, tensors, network.parameters),
        jax_impl.model.load_tensors(statistics, tensors, network.buffers),
    )
    found = np.asarray(theirs(jnp.asarray(images.transpose(0, 2, 3, 1)), train=train))

    assert found.dtype == expected.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)
    assert np.ptp(expected) > 0.1  # not all alike
    buffers = torch_impl.model.dump_tensors(ours)
    after = jax_impl.model.dump_tensors(nnx.state(theirs, nnx.BatchStat), network.buffers)
    for name in network.buffers:
        np.testing.assert_allclose(after[name], buffers[name], rtol=0, atol=bound)
        assert train != np.array_equal(buffers[name], tensors[name]), "statistics move in training, only then"


def assert_in_step(comparison: Comparison) -> None:
    """Every loss within `LOSS_BOUND`, every tensor of every kind within `TENSOR_BOUND`, at every step."""
    assert max(comparison.loss) <= LOSS_BOUND
    for kind, differences in comparison.largest.items():
        assert max(differences) <= TENSOR_BOUND, (kind, comparison.worst[kind])
    assert comparison.predictions == 0


def small(split: Split) -> Split:
    """Few validation images, since only training matters here."""
    return split._replace(val_images=split.val_images[:200], val_labels=split.val_labels[:200])


def lockstep(network: str, recipe_name: str, split: Split, steps: int) -> Comparison:
    chosen = turn_everything_on(get_recipe(network, recipe_name))
    _, comparisons = run_lockstep(
        get_network(network), chosen, small(split), steps=steps, precision="float64"
    )
    return comparisons["torch-jax"]


@pytest.mark.parametrize("recipe_name", RECIPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_first_steps_on_mnist_are_equal(name, recipe_name, mnist):
    comparison = lockstep(name, recipe_name, mnist, 12)
    assert len(comparison.loss) == 12
    assert {"gradient", "parameter", "momentum", "statistic"} <= comparison.largest.keys()
    assert_in_step(comparison)


@pytest.mark.slow
@pytest.mark.parametrize("recipe_name", RECIPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_first_hundred_steps_on_mnist_are_equal(name, recipe_name, mnist):
    assert_in_step(lockstep(name, recipe_name, mnist, 100))


def test_label_smoothing_is_the_same(digits):
    chosen = dataclasses.replace(get_recipe("net9954", "tuned"), label_smoothing=0.1)
    _, comparisons = run_lockstep(get_network("net9954"), chosen, small(digits), steps=2, precision="float64")
    assert_in_step(comparisons["torch-jax"])


# ---------------------------------------------------------------------- each parity test fails when it should


def biased_running_variance(patch: pytest.MonkeyPatch) -> None:
    original = jax_impl.model.batch_norm

    def faulty(x, *rest):
        y, mean, variance = original(x, *rest)
        count = x.size // x.shape[-1]
        return y, mean, variance * ((count - 1) / count)

    patch.setattr(jax_impl.model, "batch_norm", faulty)


def batch_norm_epsilon(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(jax_impl.model, "BN_EPSILON", 1.1e-5)


def same_padding(patch: pytest.MonkeyPatch) -> None:
    # 'SAME' keeps the map's size where the table shrinks it; with the size forced back, the border shows.
    original = jax_impl.model.conv2d

    def faulty(x, kernel, pad):
        side = kernel.shape[0] // 2
        y = original(x, kernel, side)
        cut = side - pad
        return y[:, : y.shape[1] - 2 * cut, : y.shape[2] - 2 * cut] if cut else y

    patch.setattr(jax_impl.model, "conv2d", faulty)


def batch_norm_momentum(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(jax_impl.model, "BN_MOMENTUM", 0.01)  # Flax's default of 0.99 in PyTorch's terms


def sgd_momentum(patch: pytest.MonkeyPatch) -> None:
    original = jax_impl.train.make_optimizer
    patch.setattr(
        jax_impl.train, "make_optimizer", lambda recipe: original(dataclasses.replace(recipe, momentum=0.99))
    )


def faulty_plan(patch: pytest.MonkeyPatch, change: Callable[[recipe.plan.Plan], recipe.plan.Plan]) -> None:
    original = jax_impl.train.Trainer.train
    patch.setattr(
        jax_impl.train.Trainer, "train", lambda self, plan, done: original(self, change(plan), done)
    )


def schedule_off_by_one(patch: pytest.MonkeyPatch) -> None:
    chosen = get_recipe("net10040", "tuned")
    rates = recipe.plan.learning_rates(chosen, chosen.epochs * 22)
    faulty_plan(
        patch, lambda plan: dataclasses.replace(plan, rates=rates[1 + np.searchsorted(rates, plan.rates)])
    )


def one_swapped_image(patch: pytest.MonkeyPatch) -> None:
    def swap(plan: recipe.plan.Plan) -> recipe.plan.Plan:
        images = plan.images.copy()
        images[0, 0] = images[0, 1]
        return dataclasses.replace(plan, images=images)

    faulty_plan(patch, swap)


def one_other_dropout_bit(patch: pytest.MonkeyPatch) -> None:
    original = jax_impl.model.keep_mask
    patch.setattr(
        jax_impl.model,
        "keep_mask",
        lambda element, key, rate: original(element, key, rate) ^ (element == 777),
    )


def one_warp_unit(patch: pytest.MonkeyPatch) -> None:
    def move(plan: recipe.plan.Plan) -> recipe.plan.Plan:
        maps = plan.maps.copy()
        maps[0, 0, 2] += 256  # one image by 1/256 pixel
        return dataclasses.replace(plan, maps=maps)

    faulty_plan(patch, move)


def average_decay(patch: pytest.MonkeyPatch) -> None:
    faulty_plan(patch, lambda plan: dataclasses.replace(plan, decays=plan.decays * 0.999))


def weight_decay_on_everything(patch: pytest.MonkeyPatch) -> None:
    original = jax_impl.train.optax.add_decayed_weights
    patch.setattr(jax_impl.train.optax, "add_decayed_weights", lambda decay, mask: original(decay))


FAULTS = [
    biased_running_variance,
    batch_norm_epsilon,
    same_padding,
    batch_norm_momentum,
    sgd_momentum,
    schedule_off_by_one,
    one_swapped_image,
    one_other_dropout_bit,
    one_warp_unit,
    average_decay,
    weight_decay_on_everything,
]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_deliberate_fault_is_found(fault, digits, monkeypatch):
    chosen = turn_everything_on(get_recipe("net10040", "tuned"))
    network = get_network("net10040")
    fault(monkeypatch)
    _, comparisons = run_lockstep(network, chosen, small(digits), steps=2, precision="float64")
    with pytest.raises(AssertionError):
        assert_in_step(comparisons["torch-jax"])


def test_without_a_fault_the_same_steps_are_equal(digits):
    chosen = turn_everything_on(get_recipe("net10040", "tuned"))
    _, comparisons = run_lockstep(
        get_network("net10040"), chosen, small(digits), steps=2, precision="float64", noise_floor=True
    )
    assert comparisons.keys() == {"torch-jax", "torch-torch", "jax-jax"}
    assert_in_step(comparisons["torch-jax"])
    assert max(comparisons["torch-torch"].loss) > 0, "the nudged copy must not be the same run"


def test_the_initial_nudge_is_one_unit_in_the_last_place():
    start = initial_tensors(get_network("net9954"), get_recipe("net9954", "tuned"), 0, "float32")
    nudged = benchmarks.lockstep.nudge(start)
    for name, tensor in start.items():
        steps = (nudged[name].view(np.int32) - tensor.view(np.int32)) if tensor.size else np.zeros(1)
        moved = "/" not in name and "running" not in name
        assert np.array_equal(
            np.abs(steps), np.ones_like(steps) if moved and "norm" not in name else np.abs(steps)
        )
        assert np.any(steps != 0) == moved
