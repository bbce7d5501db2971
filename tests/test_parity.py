"""The same model, step by step, in both frameworks: the claim the project stands for.

Tolerances. float64: one step rounds at 1e-16 relative; batch norm's sums over 100,000 elements and the chain
of ten layers make that about 1e-12 in a gradient. The bounds leave a factor of a hundred or more and are far
below what any difference of definition gives (see the faults at the end). float32: rounding is 1e-7 and a few
dozen roundings add up in a logit.
"""

import dataclasses
from collections.abc import Callable, Iterable

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jax_impl.kernels
import jax_impl.model
import jax_impl.train
import torch_impl.kernels
import torch_impl.model
import torch_impl.train
from lockstep.runs import (
    LOSS_BOUND,
    TENSOR_BOUND,
    Comparison,
    relative_difference,
    run_lockstep,
    turn_everything_on,
)
from recipe.checkpoint import initial_tensors
from recipe.data import Dataset
from recipe.networks import NETWORKS, Network, get_network
from recipe.plan import Plan, make_plans
from recipe.random_numbers import initial_weights
from recipe.recipes import RECIPES, Recipe, get_recipe, learning_rates
from tests.helpers import DEVICES, TINY, TINY_RECIPE, make_trainer


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


def slow(cases: Iterable) -> list:
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(
    ("network", "dtype", "train", "bound"),
    [
        *((network, "float64", True, 1e-12) for network in (NETWORKS["net9808"], TINY)),
        (TINY, "float64", False, 1e-12),
        (TINY, "float32", True, 1e-5),
        *slow((NETWORKS[name], "float64", True, 1e-12) for name in ("net10040", "net9954")),
        *slow((network, "float32", True, 1e-5) for network in NETWORKS.values()),
    ],
)
def test_same_weights_give_the_same_logits_and_statistics(network, dtype, train, bound, rng, x64):
    tensors = random_tensors(network, rng, dtype)
    images = rng.normal(size=(32, 1, 28, 28)).astype(dtype)

    devices = {name: DEVICES[name].select_devices("cpu") for name in DEVICES}
    torch_model = torch_impl.model.ConvNet(network, 0.0, devices["torch"]).to(getattr(torch, dtype))
    torch_impl.model.load_tensors(torch_model, tensors)
    torch_model.train(train)
    expected = torch_model(torch.from_numpy(images)).detach().numpy()

    flax_model = jax_impl.model.ConvNet(network, 0.0, devices["jax"])
    jax_impl.model.load_tensors(flax_model, tensors)
    flax_model.train() if train else flax_model.eval()
    logits = np.asarray(flax_model(jnp.asarray(images.transpose(0, 2, 3, 1))))

    assert logits.dtype == expected.dtype == dtype
    np.testing.assert_allclose(logits, expected, rtol=0, atol=bound)
    assert np.ptp(expected) > 0.1  # not all alike
    flax_state, state = jax_impl.model.tensors_of(flax_model), torch_model.state_dict()
    assert state.keys() == flax_state.keys() == tensors.keys(), "both have a checkpoint's names"
    for name in network.buffers:
        np.testing.assert_allclose(flax_state[name], state[name].numpy(), rtol=0, atol=bound)
        moved = not np.array_equal(state[name].numpy(), tensors[name])
        assert moved == train, "statistics move in training, only then"


def assert_in_step(comparison: Comparison) -> None:
    """Every loss within `LOSS_BOUND`, every tensor of every kind within `TENSOR_BOUND`, at every step."""
    assert np.max(comparison.loss) <= LOSS_BOUND
    for kind, (difference, name) in comparison.largest.items():
        assert difference <= TENSOR_BOUND, (kind, name)
    assert comparison.predictions == 0


def compare(
    network: Network, recipe: Recipe, dataset: Dataset, steps: int, noise_floor: bool = False
) -> dict[str, Comparison]:
    """Some steps in float64 on the CPU; few validation images, since only training matters here."""
    dataset = dataclasses.replace(
        dataset, val_images=dataset.val_images[:200], val_labels=dataset.val_labels[:200]
    )
    names = ("torch", "jax") * (2 if noise_floor else 1)
    trainers = [make_trainer(name, network, recipe, dataset, "float64") for name in names]
    return run_lockstep(trainers, network, recipe, len(dataset.train_images), steps)[1]


# Each network with the recipes that it is meant for.
CASES = [
    (network, recipe)
    for network in NETWORKS
    for recipe in RECIPES
    if (recipe == "fast") == (network == "net17816")
]
QUICK = ("net9954", "reference")


@pytest.mark.parametrize(("name", "recipe_name"), [QUICK, *slow(case for case in CASES if case != QUICK)])
def test_first_steps_on_mnist_are_equal(name, recipe_name, mnist):
    recipe = turn_everything_on(get_recipe(name, recipe_name))
    comparison = compare(get_network(name), recipe, mnist, 5)["torch_jax"]
    assert len(comparison.loss) == 5
    kinds = {"gradient", "parameter", "momentum", "statistic"}
    assert comparison.largest.keys() == kinds | ({"average"} if recipe.ema_decay else set())
    assert_in_step(comparison)


@pytest.mark.slow
def test_a_network_of_ones_own_is_equal(digits):
    # Every word of the language; a map with odd sides before a pool, two pools in a row, a shared kernel.
    line = "6 dropout pool dropout pool 6x5 6@a avgpool 6@a 8x1 average 10x1 bias"
    recipe = dataclasses.replace(turn_everything_on(get_recipe(line, "tuned")), batch=TINY_RECIPE.batch)
    assert_in_step(compare(get_network(line), recipe, digits, 3)["torch_jax"])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "recipe_name"), [QUICK, ("net9808", "tuned")])
def test_first_hundred_steps_on_mnist_are_equal(name, recipe_name, mnist):
    recipe = turn_everything_on(get_recipe(name, recipe_name))
    assert_in_step(compare(get_network(name), recipe, mnist, 100)["torch_jax"])


# ------------------------------------------------------- what runs in float32: the same kernels in float64


def take_default_kernels(patch: pytest.MonkeyPatch) -> None:
    """Let float64 take the kernels that float32 takes, instead of its own."""
    patch.setattr(torch_impl.kernels, "BY_PARTS", ())
    patch.setattr(jax_impl.kernels, "BY_IMAGE", ())


def take_pytorchs_operations(patch: pytest.MonkeyPatch) -> None:
    """Let PyTorch take its own batch norm too."""
    take_default_kernels(patch)

    def batch_norm(x, weight, bias, epsilon, devices):
        y = torch.nn.functional.batch_norm(x, None, None, weight, bias, training=True, eps=epsilon)
        return y, x.detach().mean((0, 2, 3)), x.detach().var((0, 2, 3), correction=0)

    patch.setattr(torch_impl.model, "batch_norm", batch_norm)


def losses_by_three(network: Network, recipe: Recipe, dataset: Dataset, steps: int) -> np.ndarray:
    """Losses (3, steps) of PyTorch and Flax by the default kernels, and of PyTorch by its own operations."""
    losses = []
    for names, take in (("torch", "jax"), take_default_kernels), (("torch",), take_pytorchs_operations):
        with pytest.MonkeyPatch.context() as patch:
            take(patch)
            trainers = [make_trainer(name, network, recipe, dataset, "float64") for name in names]
            losses.append(run_lockstep(trainers, network, recipe, len(dataset.train_images), steps)[0])
    return np.concatenate(losses)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "recipe_name"), [("net9954", "reference"), ("net10040", "tuned")])
def test_the_default_kernels_are_in_step(name, recipe_name, mnist):
    """100 steps, each loss within 1e-12: rounding is 1e-16 a step, and these runs do not part in float64."""
    recipe = turn_everything_on(get_recipe(name, recipe_name))
    torch_losses, *others = losses_by_three(get_network(name), recipe, mnist, 100)
    np.testing.assert_allclose(others, [torch_losses] * 2, rtol=0, atol=1e-12)


def test_the_default_kernels_are_in_step_on_a_small_network(digits):
    torch_losses, *others = losses_by_three(TINY, dataclasses.replace(TINY_RECIPE, warmup=None), digits, 5)
    np.testing.assert_allclose(others, [torch_losses] * 2, rtol=0, atol=1e-12)


def test_a_kernel_whose_gradient_is_wrong_by_a_billionth_is_found(digits):
    right = jax_impl.kernels._conv2d_bwd
    wrong = jax_impl.kernels._conv2d_cpu
    wrong.defvjp(jax_impl.kernels._conv2d_fwd, lambda *given: tuple(x * (1 + 1e-9) for x in right(*given)))
    try:
        losses = losses_by_three(TINY, dataclasses.replace(TINY_RECIPE, warmup=None), digits, 5)
    finally:
        wrong.defvjp(jax_impl.kernels._conv2d_fwd, right)
    assert np.abs(losses[1] - losses[0]).max() > 1e-12


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_the_gradients_of_a_float32_step_are_those_of_float64(framework, digits, rng):
    """A sum of n products in float32 rounds at about sqrt(n) x 6e-8 of its terms, and ten layers follow.

    Where terms cancel, the result is smaller than they are: up to 4e-6 of a tensor's norm was seen. The bound
    is 3e-5. The images are noise: an empty background has ties in max pooling, which rounding breaks.
    """
    noise = rng.integers(0, 256, digits.train_images.shape, np.uint8)
    digits = dataclasses.replace(digits, train_images=noise)
    network, recipe = get_network("net9954"), get_recipe("net9954", "reference")
    plan = next(make_plans(network, recipe, 0, len(digits.train_images), 0, 1))
    start = initial_tensors(network, recipe, 0, "float32")
    gradients = []
    for precision in ("float32", "float64"):
        trainer = make_trainer(framework, network, recipe, digits, precision)
        trainer.load({name: tensor.astype(precision) for name, tensor in start.items()})
        trainer.train(plan, lambda _: None)
        gradients.append({k: v for k, v in trainer.tensors().items() if k.startswith("momentum/")})
    for name, exact in gradients[1].items():
        assert relative_difference(gradients[0][name], exact) < 3e-5, name


# -------------------------------------------------------------------------------------------------- more


@pytest.mark.slow
def test_label_smoothing_is_the_same(digits):
    recipe = dataclasses.replace(TINY_RECIPE, label_smoothing=0.1)
    assert_in_step(compare(TINY, recipe, digits, 2)["torch_jax"])


# ---------------------------------------------------------------------- each parity test fails when it should


def biased_running_variance(patch: pytest.MonkeyPatch) -> None:
    original = jax_impl.model.batch_norm

    def faulty(x, *rest):
        y, mean, variance = original(x, *rest)
        count = x.size // x.shape[-1]
        return y, mean, variance * ((count - 1) / count)

    patch.setattr(jax_impl.model, "batch_norm", faulty)


def batch_norm_epsilon(patch: pytest.MonkeyPatch) -> None:
    original = jax_impl.model.BatchNorm
    patch.setattr(
        jax_impl.model, "BatchNorm", lambda channels, _, *others: original(channels, 1.1e-5, *others)
    )


def same_padding(patch: pytest.MonkeyPatch) -> None:
    # 'SAME' keeps the map's size where the table shrinks it; with the size forced back, the border shows.
    original = jax_impl.model.conv2d

    def faulty(x, kernel, bias, pad, on_cpu):
        side = kernel.shape[-1] // 2
        y = original(x, kernel, bias, side, on_cpu)
        cut = side - pad
        return y[:, : y.shape[1] - 2 * cut, : y.shape[2] - 2 * cut] if cut else y

    patch.setattr(jax_impl.model, "conv2d", faulty)


def batch_norm_momentum(patch: pytest.MonkeyPatch) -> None:
    original = jax_impl.model.BatchNorm  # 0.01 is Flax's default of 0.99 in PyTorch's terms
    patch.setattr(
        jax_impl.model,
        "BatchNorm",
        lambda channels, epsilon, _, devices: original(channels, epsilon, 0.01, devices),
    )


def sgd_momentum(patch: pytest.MonkeyPatch) -> None:
    original = jax_impl.train.make_optimizer
    patch.setattr(
        jax_impl.train, "make_optimizer", lambda recipe: original(dataclasses.replace(recipe, momentum=0.99))
    )


def faulty_plan(patch: pytest.MonkeyPatch, change: Callable[[Plan], Plan]) -> None:
    original = jax_impl.train.Trainer.train
    patch.setattr(
        jax_impl.train.Trainer, "train", lambda self, plan, advance: original(self, change(plan), advance)
    )


def schedule_off_by_one(patch: pytest.MonkeyPatch) -> None:
    lr = learning_rates(TINY_RECIPE, TINY_RECIPE.epochs * 22)
    faulty_plan(patch, lambda plan: plan._replace(lr=lr[1 + np.searchsorted(lr, plan.lr)]))


def one_swapped_image(patch: pytest.MonkeyPatch) -> None:
    def swap(plan: Plan) -> Plan:
        indices = plan.indices.copy()
        indices[0, 0] = indices[0, 1]
        return plan._replace(indices=indices)

    faulty_plan(patch, swap)


def one_other_dropout_bit(patch: pytest.MonkeyPatch) -> None:
    original = jax_impl.model.keep_mask
    centre = (
        1 * 14 * 14 + 7 * 14 + 7
    )  # of the first image's second channel, where ReLU leaves something to drop
    patch.setattr(
        jax_impl.model,
        "keep_mask",
        lambda element, key, rate: original(element, key, rate) ^ (element == centre),
    )


def one_warp_unit(patch: pytest.MonkeyPatch) -> None:
    def move(plan: Plan) -> Plan:
        affine = plan.affine.copy()
        affine[0, 0, 2] += 256  # one image by 1/256 pixel
        return plan._replace(affine=affine)

    faulty_plan(patch, move)


def average_decay(patch: pytest.MonkeyPatch) -> None:
    faulty_plan(patch, lambda plan: plan._replace(ema_decay=plan.ema_decay * 0.999))


def weight_decay_on_everything(patch: pytest.MonkeyPatch) -> None:
    original = jax_impl.train.optax.add_decayed_weights
    patch.setattr(jax_impl.train.optax, "add_decayed_weights", lambda decay, mask: original(decay))


FAULTS = [biased_running_variance, sgd_momentum, one_swapped_image, one_other_dropout_bit]
FAULTS += slow(
    [fault]
    for fault in (
        *(batch_norm_epsilon, same_padding, batch_norm_momentum, schedule_off_by_one),
        *(one_warp_unit, average_decay, weight_decay_on_everything),
    )
)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_deliberate_fault_is_found(fault, digits, monkeypatch):
    fault(monkeypatch)
    comparison = compare(TINY, TINY_RECIPE, digits, 2)["torch_jax"]
    with pytest.raises(AssertionError):
        assert_in_step(comparison)


def test_without_a_fault_the_same_steps_are_equal(digits):
    comparisons = compare(TINY, TINY_RECIPE, digits, 2, noise_floor=True)
    assert comparisons.keys() == {"torch_jax", "torch_torch", "jax_jax"}
    assert_in_step(comparisons["torch_jax"])
    # Its losses may be equal, since a float64 loss hides a change of one unit in the last place of a weight.
    nudged = comparisons["torch_torch"].largest
    assert nudged["parameter"][0] > 0, "the nudged copy must not be the same run"
