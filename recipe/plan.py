"""The input of the training steps: arrays whose first axis is the step."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from recipe import random_numbers
from recipe.networks import Network
from recipe.recipes import Recipe, ema_decays, learning_rates

Array = Any  # NumPy's; the frameworks make the same tuple of their own arrays


class Plan(NamedTuple):
    """The steps of an epoch, or some of them, with all their randomness: S steps of B images each.

    A framework's training step gets one of these too, of a single step and without the axis S.
    """

    indices: Array  # int32 (S, B), positions in the training set
    affine: Array  # int32 (S, B, 6), see `recipe.random_numbers.epoch_affine`; (S, 0, 6) without augmentation
    dropout_keys: Array  # int32 (S, dropout layers, 2), see `recipe.random_numbers.epoch_dropout_keys`
    lr: Array  # float64 (S,), learning rates
    ema_decay: Array  # float64 (S,), decays of the weight average

    @property
    def steps(self) -> int:
        """The number of steps."""
        return len(self.indices)

    def part(self, start: int, stop: int) -> "Plan":
        """Steps start..stop-1 of this plan."""
        return Plan(*(array[start:stop] for array in self))

    def share(self, device: int, devices: int) -> "Plan":
        """The steps of one of several devices: its part of each batch; all parts have the same size."""
        images = self.indices.shape[1] // devices
        part = slice(device * images, (device + 1) * images)
        return self._replace(indices=self.indices[:, part], affine=self.affine[:, part])


def steps_per_epoch(recipe: Recipe, images: int) -> int:
    """Full batches in one epoch. The images left over are dropped: a small batch changes the statistics."""
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
    order = random_numbers.epoch_order(seed, epoch, images)[: steps * recipe.batch].reshape(
        steps, recipe.batch
    )
    if recipe.augments:
        affine = random_numbers.epoch_affine(recipe, seed, epoch, steps * recipe.batch).reshape(
            *order.shape, 6
        )
    else:
        affine = np.zeros((steps, 0, 6), np.int32)
    return Plan(
        indices=order[first:last],
        affine=affine[first:last],
        dropout_keys=random_numbers.epoch_dropout_keys(network, seed, epoch, steps)[first:last],
        lr=learning_rates(recipe, steps * recipe.epochs)[start:stop],
        ema_decay=ema_decays(recipe, start, stop),
    )


def make_plans(
    network: Network, recipe: Recipe, seed: int, images: int, start: int, stop: int
) -> Iterator[Plan]:
    """The plans of global steps start..stop-1, one for each epoch or part of one; see `make_plan`."""
    per_epoch = steps_per_epoch(recipe, images)
    while start < stop:
        end = min(stop, (start // per_epoch + 1) * per_epoch)
        yield make_plan(network, recipe, seed, images, start, end)
        start = end
