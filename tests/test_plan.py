"""Schedules, averages and the arrays each step is given."""

import dataclasses

import numpy as np
import pytest

from recipe.errors import UserError
from recipe.networks import NETWORKS, get_network
from recipe.plan import make_plan, steps_per_epoch
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
    assert (recipe.peak_rate, recipe.momentum, recipe.batch, recipe.epochs, recipe.dropout) == (
        0.01, 0.9, 128, 19, 0.3
    )  # fmt: skip
    assert (recipe.weight_decay, recipe.augments, recipe.ema, recipe.nesterov) == (0.0, False, None, False)
    np.testing.assert_array_equal(learning_rates(recipe, 5), np.full(5, 0.01))


def test_unknown_recipe_is_named():
    with pytest.raises(UserError, match=r"'best'.*tuned, reference"):
        get_recipe("net9954", "best")


def test_warm_up_and_decay_make_a_triangle():
    recipe = Recipe("r", epochs=1, batch=1, peak_rate=0.2, warmup=0.25)
    rates = learning_rates(recipe, 400)
    assert rates.dtype == np.float64
    assert rates.argmax() in (99, 100)
    assert 0.199 < rates.max() <= 0.2
    assert 0 < rates.min() < 0.001
    np.testing.assert_allclose(np.diff(rates[:100]), 0.2 / 100)
    np.testing.assert_allclose(np.diff(rates[100:]), -0.2 / 300)
    assert rates.mean() == pytest.approx(0.1, rel=1e-3)


def test_ema_warms_up_to_its_decay():
    recipe = Recipe("r", epochs=1, batch=1, peak_rate=0.1, ema=0.99)
    decays = ema_decays(recipe, 0, 2000)
    assert decays[0] == pytest.approx(0.1)
    assert decays[90] == pytest.approx(0.91)
    assert decays[-1] == 0.99
    np.testing.assert_array_equal(ema_decays(recipe, 50, 60), decays[50:60])


def test_the_last_partial_batch_is_dropped():
    assert steps_per_epoch(get_recipe("net10040", "reference"), 60_000) == 468
    plan = make_plan(NETWORK, get_recipe("net10040", "reference"), 0, 300, 0, 2)
    assert plan.images.shape == (2, 128)
    assert len(np.unique(plan.images)) == 256, "no image twice in an epoch"


def test_a_plan_in_pieces_is_the_whole_plan():
    recipe = dataclasses.replace(get_recipe("net10040", "tuned"), dropout=0.1)
    whole = make_plan(NETWORK, recipe, 3, 1000, 15, 30)  # the second epoch of 15 steps
    first, last = make_plan(NETWORK, recipe, 3, 1000, 15, 21), make_plan(NETWORK, recipe, 3, 1000, 21, 30)
    for field in dataclasses.fields(whole):
        pieces = [getattr(first, field.name), getattr(last, field.name)]
        np.testing.assert_array_equal(np.concatenate(pieces), getattr(whole, field.name))
    assert len(whole) == 15
    assert whole.keys.shape == (15, 8, 2)
    assert whole.maps.shape == (15, 64, 6)
    assert not np.array_equal(whole.keys[0], whole.keys[1])
    np.testing.assert_array_equal(whole[2:3].images, whole.images[2:3])


def test_no_augmentation_means_no_maps():
    plan = make_plan(NETWORK, get_recipe("net10040", "reference"), 0, 300, 0, 2)
    assert plan.maps.shape == (2, 0, 6)


def test_a_plan_stays_in_its_epoch():
    with pytest.raises(AssertionError):
        make_plan(NETWORK, get_recipe("net10040", "tuned"), 0, 1000, 10, 20)
