"""Schedules, averages and the arrays each step is given."""

import dataclasses

import numpy as np
import pytest

from recipe.console import UserError
from recipe.networks import NETWORKS, get_network
from recipe.plan import Plan, make_plan, make_plans, steps_per_epoch
from recipe.recipes import RECIPES, Recipe, ema_decays, get_recipe, learning_rates

NETWORK = get_network("net10040")


def test_every_network_has_every_recipe():
    for network in NETWORKS:
        for name in RECIPES:
            recipe = get_recipe(network, name)
            assert recipe.name == name
            assert recipe.epochs <= 20 if name == "reference" else recipe.epochs < 20


def test_reference_is_what_was_published():
    recipe = get_recipe("net9954", "reference")
    assert (recipe.lr, recipe.momentum, recipe.batch, recipe.epochs, recipe.dropout) == (
        0.01, 0.9, 128, 19, 0.3
    )  # fmt: skip
    assert (recipe.weight_decay, recipe.augments, recipe.ema_decay, recipe.nesterov) == (
        0.0,
        False,
        None,
        False,
    )
    np.testing.assert_array_equal(learning_rates(recipe, 5), np.full(5, 0.01))


def test_a_small_network_gets_a_recipe_of_its_own():
    small, large = (get_recipe(f"{channels} {channels} average 10x1", "tuned") for channels in (20, 24))
    assert get_network("20 20 average 10x1").parameter_count < 5_000
    assert small.weight_decay > large.weight_decay
    assert small.name == large.name == "tuned"


def test_unknown_recipe_is_named():
    with pytest.raises(UserError, match=r"'best'.*tuned, reference, fast"):
        get_recipe("net9954", "best")


def test_warm_up_and_decay_make_a_triangle():
    recipe = Recipe("r", epochs=1, batch=1, lr=0.2, warmup=0.25)
    lr = learning_rates(recipe, 400)
    assert lr.dtype == np.float64
    assert lr.argmax() in (99, 100)
    assert 0.199 < lr.max() <= 0.2
    assert 0 < lr.min() < 0.001
    np.testing.assert_allclose(np.diff(lr[:100]), 0.2 / 100)
    np.testing.assert_allclose(np.diff(lr[100:]), -0.2 / 300)
    assert lr.mean() == pytest.approx(0.1, rel=1e-3)


def test_ema_warms_up_to_its_decay():
    recipe = Recipe("r", epochs=1, batch=1, lr=0.1, ema_decay=0.99)
    decays = ema_decays(recipe, 0, 2000)
    assert decays[0] == pytest.approx(0.1)
    assert decays[90] == pytest.approx(0.91)
    assert decays[-1] == 0.99
    np.testing.assert_array_equal(ema_decays(recipe, 50, 60), decays[50:60])


def test_the_last_partial_batch_is_dropped():
    assert steps_per_epoch(get_recipe("net10040", "reference"), 60_000) == 468
    plan = make_plan(NETWORK, get_recipe("net10040", "reference"), 0, 300, 0, 2)
    assert plan.indices.shape == (2, 128)
    assert len(np.unique(plan.indices)) == 256, "no image twice in an epoch"


def test_a_plan_in_pieces_is_the_whole_plan():
    recipe = dataclasses.replace(get_recipe("net10040", "tuned"), dropout=0.1)
    whole = make_plan(NETWORK, recipe, 3, 1000, 15, 30)  # the second epoch of 15 steps
    first, last = make_plan(NETWORK, recipe, 3, 1000, 15, 21), make_plan(NETWORK, recipe, 3, 1000, 21, 30)
    for name, *arrays in zip(Plan._fields, whole, first, last, whole.part(6, 15), strict=True):
        np.testing.assert_array_equal(np.concatenate(arrays[1:3]), arrays[0], err_msg=name)
        np.testing.assert_array_equal(arrays[3], arrays[2], err_msg=name)
    assert (whole.steps, first.steps, last.steps) == (15, 6, 9)
    assert whole.dropout_keys.shape == (15, 8, 2)
    assert whole.affine.shape == (15, 64, 6)
    assert not np.array_equal(whole.dropout_keys[0], whole.dropout_keys[1])


@pytest.mark.parametrize(
    ("start", "stop", "steps"), [(0, 45, [15, 15, 15]), (4, 33, [11, 15, 3]), (5, 5, [])]
)
def test_plans_end_with_their_epoch(start, stop, steps):
    recipe = get_recipe("net10040", "tuned")
    plans = list(make_plans(NETWORK, recipe, 3, 1000, start, stop))
    assert [plan.steps for plan in plans] == steps
    for plan in plans:
        expected = make_plan(NETWORK, recipe, 3, 1000, start, start + plan.steps)
        for array, other in zip(plan, expected, strict=True):
            np.testing.assert_array_equal(array, other)
        start += plan.steps


def test_no_augmentation_means_no_affine_maps():
    plan = make_plan(NETWORK, get_recipe("net10040", "reference"), 0, 300, 0, 2)
    assert plan.affine.shape == (2, 0, 6)


def test_a_plan_stays_in_its_epoch():
    with pytest.raises(AssertionError):
        make_plan(NETWORK, get_recipe("net10040", "tuned"), 0, 1000, 10, 20)
