"""Hyperparameters: which settings train a network, and the arrays that follow from them."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from recipe.console import UserError
from recipe.networks import get_network


@dataclass(frozen=True)
class Recipe:
    """All settings of a run except network, data, seed and precision."""

    name: str
    epochs: int
    batch: int
    lr: float  # learning rate: the peak of the schedule, or constant where warmup is None
    warmup: float | None = None  # fraction of all steps up to the peak; then linear decay to zero
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0  # on convolution kernels only
    dropout: float = 0.0
    rotation: float = 0.0  # augmentation, each drawn uniformly between minus and plus this: degrees
    shift: float = 0.0  # pixels
    scale: float = 0.0  # fraction
    shear: float = 0.0  # degrees
    final_augmentation: float = 1.0  # in the last epoch, as a fraction of these ranges
    ema_decay: float | None = None  # of the weight average; if there is one, it is the model
    label_smoothing: float = 0.0

    @property
    def augments(self) -> bool:
        """Whether training images are warped."""
        return any((self.rotation, self.shift, self.scale, self.shear))


# The settings that net9954's author published. net10040's author published none; its curve fits the same
# settings with a small dropout.
_PUBLISHED = Recipe("reference", epochs=19, batch=128, lr=0.01, dropout=0.3)

_TUNED = Recipe(
    "tuned",
    epochs=19,
    batch=64,
    lr=0.1,
    warmup=0.15,
    nesterov=True,
    weight_decay=1e-4,
    rotation=9.0,
    shift=1.5,
    scale=0.07,
    shear=3.0,
    ema_decay=0.999,
)

_WIDE = replace(_TUNED, rotation=12.0, shift=2.0, scale=0.12, shear=8.0, final_augmentation=0.5)
_UNNAMED = replace(_WIDE, dropout=0.05)  # dropout changes only a network that has such a layer
_SMALL = replace(_UNNAMED, weight_decay=3e-4)
_SMALL_PARAMETERS = 5_000  # a network with fewer is small
# In three epochs no image is learned by heart, so there is nothing that augmentation could prevent.
_FAST = Recipe(
    "fast", epochs=3, batch=64, lr=0.1, warmup=0.15, nesterov=True, weight_decay=1e-3, ema_decay=0.999
)

_RECIPES: dict[tuple[str, str], Recipe] = {
    ("net10040", "reference"): replace(_PUBLISHED, epochs=20, dropout=0.05),
    ("net9954", "reference"): _PUBLISHED,
    ("net9808", "reference"): replace(_PUBLISHED, dropout=0.0),  # never published; the same plain settings
    ("net10040", "tuned"): _TUNED,
    ("net9954", "tuned"): replace(_TUNED, weight_decay=5e-4),
    ("net9808", "tuned"): _WIDE,
}
# For any other network.
_OWN = {"tuned": _UNNAMED, "reference": _PUBLISHED, "fast": _FAST}

RECIPES = ("tuned", "reference", "fast")


Precision = Literal["float32", "float64", "bfloat16", "bitwise"]


@dataclass(frozen=True)
class Arithmetic:
    """How a run of one precision computes."""

    dtype: str  # of weights, statistics, optimizer and loss
    compute_dtype: str  # of the activations
    on_grid: bool = False  # see `recipe.rounding`


PRECISIONS: dict[Precision, Arithmetic] = {
    "float32": Arithmetic("float32", "float32"),
    "float64": Arithmetic("float64", "float64"),
    "bfloat16": Arithmetic("float32", "bfloat16"),
    "bitwise": Arithmetic("float64", "float64", on_grid=True),
}


def get_recipe(network: str, name: str) -> Recipe:
    """The recipe of that name for a network, by the network's name or its list of layers.

    Raises:
        UserError: there is none, or no such network.
    """
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}; choose one of: {', '.join(RECIPES)}")
    if name == "tuned" and get_network(network).parameter_count < _SMALL_PARAMETERS:
        return _SMALL
    return _RECIPES.get((network, name), _OWN[name])


def learning_rates(recipe: Recipe, steps: int) -> np.ndarray:
    """The learning rate of every step: float64, shape (steps,).

    With warm-up, step t of T uses the triangle through (0, 0), (warmup T, peak) and (T, 0), read at t + 1/2
    so that no step has rate zero.
    """
    if recipe.warmup is None:
        return np.full(steps, recipe.lr)
    position = (np.arange(steps) + 0.5) / steps
    return recipe.lr * np.minimum(position / recipe.warmup, (1 - position) / (1 - recipe.warmup))


def augmentation_strength(recipe: Recipe, epoch: int) -> float:
    """What the ranges of the augmentation are multiplied by; linear in the epoch, which counts from 0."""
    return 1 + (recipe.final_augmentation - 1) * epoch / max(recipe.epochs - 1, 1)


def ema_decays(recipe: Recipe, start: int, stop: int) -> np.ndarray:
    """The decay of the weight average at steps start..stop-1: float64.

    Warmed up as min(d, (1 + t) / (10 + t)), the rule of TensorFlow's ``ExponentialMovingAverage``; without
    it the average would stay near the initial weights for the whole first epoch.
    """
    step = np.arange(start, stop)
    return np.minimum(recipe.ema_decay or 0.0, (1 + step) / (10 + step))
