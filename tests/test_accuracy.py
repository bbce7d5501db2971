"""Both frameworks learn real MNIST, and learn it alike."""

import pytest

from recipe.data import Split
from recipe.networks import NETWORKS, get_network
from recipe.plan import make_plan, steps_per_epoch
from recipe.recipes import get_recipe
from recipe.run import initial_tensors
from tests.test_run import FRAMEWORKS


def accuracy_after_one_epoch(framework: str, network: str, split: Split) -> float:
    """Validation accuracy of `tuned` with a schedule of one epoch, seed 0."""
    import dataclasses

    recipe = dataclasses.replace(get_recipe(network, "tuned"), epochs=1)
    trainer = FRAMEWORKS[framework].trainer(get_network(network), recipe, split, "cpu", "float32")
    trainer.load(initial_tensors(get_network(network), recipe, 0, "float32"))
    images = len(split.train_images)
    plan = make_plan(get_network(network), recipe, 0, images, 0, steps_per_epoch(recipe, images))
    trainer.train(plan, lambda _: None)
    return trainer.evaluate()[1]


@pytest.mark.parametrize("name", NETWORKS)
def test_one_epoch_of_tuned_is_as_good_in_both(name, mnist):
    ours, theirs = (accuracy_after_one_epoch(framework, name, mnist) for framework in FRAMEWORKS)
    assert min(ours, theirs) >= 0.97
    # One standard error of an accuracy of 98.5 % on 10,000 images is 0.12 points.
    assert abs(ours - theirs) <= 0.003
