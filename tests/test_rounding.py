"""--precision bitwise: one digest from both frameworks, from any number of threads, stopped or not."""

import numpy as np
import pytest
import torch

from recipe.checkpoint import initial_tensors, load_checkpoint, state_digest
from recipe.networks import get_network
from recipe.plan import make_plans, steps_per_epoch
from recipe.recipes import get_recipe
from recipe.rounding import MOMENTUM, STATE, round_to_grid
from tests.helpers import BITWISE, DIGEST, LINE, ROOT, TRAINERS, make_trainer, train_digits


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The short run of each framework."""
    return {
        name: load_checkpoint(train_digits(name, tmp_path_factory.mktemp(name) / "run", **BITWISE))
        for name in TRAINERS
    }


def test_both_frameworks_end_in_the_same_bits(runs):
    for name, run in runs.items():
        assert run.metrics[-1].digest == state_digest(run.tensors) == DIGEST, name
    torch_digests, jax_digests = ([entry.digest for entry in run.metrics] for run in runs.values())
    assert torch_digests == jax_digests
    assert len(set(torch_digests)) == 2
    # Losses are not fed back and not rounded: they differ by one forward pass's rounding, at most 5e-14 here.
    np.testing.assert_allclose(runs["torch"].losses, runs["jax"].losses, rtol=0, atol=1e-12)


@pytest.mark.parametrize("page", ["README.md", "docs/lockstep.md"])
def test_the_pages_have_the_digest(page):
    assert DIGEST in (ROOT / page).read_text()


def test_without_the_grid_the_bits_differ(tmp_path):
    changes = BITWISE | {"network": LINE, "precision": "float64", "max_steps": 5}
    paths = [train_digits(name, tmp_path / name, **changes) for name in TRAINERS]
    ours, theirs = (load_checkpoint(path).metrics[-1].digest for path in paths)
    assert ours != theirs


@pytest.mark.slow
def test_one_thread_ends_in_the_same_bits(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        path = train_digits("torch", tmp_path / "run", **BITWISE)
    finally:
        torch.set_num_threads(threads)
    assert load_checkpoint(path).metrics[-1].digest == DIGEST


@pytest.mark.parametrize("order", [("torch", "jax"), ("jax", "torch")], ids="-".join)
def test_half_in_one_framework_and_half_in_the_other(order, tmp_path):
    first, second = order
    half = train_digits(first, tmp_path / "run", **BITWISE, max_steps=22)  # the first epoch
    path = train_digits(second, tmp_path / "run", **BITWISE, resume=half)
    assert load_checkpoint(path).metrics[-1].digest == DIGEST


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["tuned", "reference"])
@pytest.mark.parametrize("name", ["net9954"])
def test_few_roundings_part_in_a_whole_run(name, recipe, mnist):
    """The expected number, from the differences before rounding in the first steps; see docs/lockstep.md."""
    network, recipe, steps = get_network(name), get_recipe(name, recipe), 30
    trainers = [make_trainer(name, network, recipe, mnist, "float64") for name in TRAINERS]
    state, expected = initial_tensors(network, recipe, 0, "bitwise"), 0.0
    for plan in make_plans(network, recipe, 0, len(mnist.train_images), 0, steps):
        for step in range(steps):
            for trainer in trainers:
                trainer.load(state)
                trainer.train(plan.part(step, step + 1), lambda _: None)
            ours, theirs = (trainer.tensors() for trainer in trainers)
            for key, tensor in ours.items():
                grid = MOMENTUM if key.startswith("momentum/") else STATE
                expected += np.abs(tensor - theirs[key]).sum() * grid
                state[key] = round_to_grid(tensor, grid)
    whole = steps_per_epoch(recipe, len(mnist.train_images)) * recipe.epochs
    expected *= whole / steps
    print(f"{name} {recipe.name}: {expected:.4f} roundings part in {whole:,} steps")
    assert expected < 0.01


def test_the_state_lies_on_the_grid(runs):
    for name, tensor in runs["torch"].tensors.items():
        scaled = tensor * (MOMENTUM if name.startswith("momentum/") else STATE)
        np.testing.assert_array_equal(scaled, np.rint(scaled), err_msg=name)


def test_rounding_is_to_the_nearest_and_of_halves_to_even():
    values = np.array([0.5, 1.5, 2.5, -0.5, 0.49, 0.51, 1e6 + 0.5]) / STATE
    expected = np.array([0, 2, 2, -0.0, 0, 1, 1e6]) / STATE
    np.testing.assert_array_equal(round_to_grid(values, STATE), expected)
    np.testing.assert_array_equal(round_to_grid(torch.from_numpy(values), STATE).numpy(), expected)
