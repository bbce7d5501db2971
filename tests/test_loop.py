"""What `torch_impl.loop` does with PyTorch beyond what PyTorch documents."""

import dataclasses

import numpy as np
from torch._functorch import config as partitioner

from recipe.checkpoint import initial_tensors
from recipe.plan import make_plans
from tests.helpers import TINY, TINY_RECIPE, make_trainer


def test_sgd_uses_the_momentum_and_the_learning_rate_that_it_was_given(digits):
    """A momentum that SGD made anew would not have the 0.25 in it; a rate that stays 0 would move nothing."""
    recipe = dataclasses.replace(
        TINY_RECIPE, ema_decay=None, weight_decay=0.0, warmup=None, nesterov=False, momentum=0.9
    )
    before = initial_tensors(TINY, recipe, 0, "float64")
    before = {k: v + 0.25 if k.startswith("momentum/") else v for k, v in before.items()}
    trainer = make_trainer("torch", TINY, recipe, digits, "float64")
    trainer.load(before)
    plan = next(make_plans(TINY, recipe, 0, len(digits.train_images), 0, 1))
    trainer.train(plan, lambda _: None)
    after, lr = trainer.tensors(), float(plan.lr[0])
    for name in TINY.parameters:
        gradient = after[f"momentum/{name}"] - 0.9 * before[f"momentum/{name}"]
        assert 0 < np.abs(gradient).max() < 10, name
        step = before[name] - after[name]
        np.testing.assert_allclose(step, lr * after[f"momentum/{name}"], rtol=0, atol=1e-12)
        assert np.abs(step).max() > 0.1 * lr * 0.9 * 0.25


def test_the_settings_of_the_compiler_still_exist():
    """They are not documented: where they are gone, `recompute_masks` does nothing, and a step is slower."""
    for name in ("ban_recompute_used_far_apart", "ban_recompute_long_fusible_chains"):
        assert isinstance(getattr(partitioner, name), bool)
