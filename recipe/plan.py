"""What each training step is given, as arrays whose first axis is the step."""

from dataclasses import dataclass, fields

import numpy as np

from recipe import chance
from recipe.networks import Network
from recipe.recipes import Recipe, ema_decays, learning_rates


@dataclass(frozen=True)
class Plan:
    """The steps of an epoch, or some of them, with all their chance: S steps of B images each."""

    images: np.ndarray  # int32 (S, B), positions in the training set
    maps: np.ndarray  # int32 (S, B, 6), see recipe.chance.epoch_warps; (S, 0, 6) without augmentation
    keys: np.ndarray  # int32 (S, dropout layers, 2), see recipe.chance.epoch_dropout_keys
    rates: np.ndarray  # float64 (S,), learning rates
    decays: np.ndarray  # float64 (S,), decays of the weight average

    def __len__(self) -> int:
        """The number of steps."""
        return len(self.images)

    def __getitem__(self, steps: slice) -> "Plan":
        """Some of the steps."""
        return Plan(*(getattr(self, field.name)[steps] for field in fields(self)))


def steps_per_epoch(recipe: Recipe, images: int) -> int:
    """Full batches in one epoch; what is left over is dropped, since it would change the statistics."""
    return images // recipe.batch


def make_plan(network: Network, recipe: Recipe, seed: int, images: int, start: int, stop: int) -> Plan:
    """The plan of global steps start..stop-1, which must lie within one epoch.

    Args:
        network: for its dropout layers.
        recipe: the resolved recipe; its ``epochs`` decide the schedule.
        seed: of every draw.
        images: size of the training set.
        start: the first step, counted from the start of the run.
        stop: the step after the last.
    """
    steps = steps_per_epoch(recipe, images)
    epoch, first = divmod(start, steps)
    last = stop - epoch * steps
    assert 0 <= first < last <= steps, (start, stop, steps)
    order = chance.epoch_order(seed, epoch, images)[: steps * recipe.batch].reshape(steps, recipe.batch)
    if recipe.augments:
        maps = chance.epoch_warps(recipe, seed, epoch, steps * recipe.batch).reshape(*order.shape, 6)
    else:
        maps = np.zeros((steps, 0, 6), np.int32)
    return Plan(
        images=order[first:last],
        maps=maps[first:last],
        keys=chance.epoch_dropout_keys(network, seed, epoch, steps)[first:last],
        rates=learning_rates(recipe, steps * recipe.epochs)[start:stop],
        decays=ema_decays(recipe, start, stop),
    )
