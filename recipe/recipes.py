"""Hyperparameters: which settings train a network, and the arrays that follow from them."""

from dataclasses import dataclass, replace

import numpy as np

from recipe.errors import UserError


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run besides network, data, seed and precision."""

    name: str
    epochs: int
    batch: int
    peak_rate: float  # learning rate; constant where warmup is None
    warmup: float | None = None  # fraction of all steps up to the peak; then linear decay to zero
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0  # on convolution kernels only
    dropout: float = 0.0
    rotation: float = 0.0  # augmentation ranges, each drawn uniformly from +-: degrees
    shift: float = 0.0  # pixels
    scale: float = 0.0  # fraction
    shear: float = 0.0  # degrees
    ema: float | None = None  # decay of the weight average, which then is the model
    label_smoothing: float = 0.0

    @property
    def augments(self) -> bool:
        """Whether training images are warped."""
        return any((self.rotation, self.shift, self.scale, self.shear))


# The settings that net9954's author published; net10040's author published none, and its curve fits these
# with a small dropout (DESIGN.md).
_PUBLISHED = Recipe("reference", epochs=19, batch=128, peak_rate=0.01, dropout=0.3)

_TUNED = Recipe(
    "tuned",
    epochs=19,
    batch=64,
    peak_rate=0.1,
    warmup=0.15,
    nesterov=True,
    weight_decay=1e-4,
    rotation=9.0,
    shift=1.5,
    scale=0.07,
    shear=3.0,
    ema=0.999,
)

_RECIPES: dict[tuple[str, str], Recipe] = {
    ("net10040", "reference"): replace(_PUBLISHED, epochs=20, dropout=0.05),
    ("net9954", "reference"): _PUBLISHED,
    ("net9555", "reference"): replace(_PUBLISHED, dropout=0.0),  # never published; the same plain settings
    ("net10040", "tuned"): _TUNED,
    ("net9954", "tuned"): replace(_TUNED, weight_decay=5e-4),
    ("net9555", "tuned"): _TUNED,
}

RECIPES = ("tuned", "reference")


def get_recipe(network: str, name: str) -> Recipe:
    """The recipe of that name for a network.

    Raises:
        UserError: there is none.
    """
    if (network, name) not in _RECIPES:
        raise UserError(f"unknown recipe {name!r}; choose one of: {', '.join(RECIPES)}")
    return _RECIPES[network, name]


def learning_rates(recipe: Recipe, steps: int) -> np.ndarray:
    """The learning rate of every step: float64, shape (steps,).

    With warm-up, step t of T uses the triangle through (0, 0), (warmup T, peak) and (T, 0), read at t + 1/2
    so that no step has rate zero.
    """
    if recipe.warmup is None:
        return np.full(steps, recipe.peak_rate)
    position = (np.arange(steps) + 0.5) / steps
    return recipe.peak_rate * np.minimum(position / recipe.warmup, (1 - position) / (1 - recipe.warmup))


def ema_decays(recipe: Recipe, start: int, stop: int) -> np.ndarray:
    """The decay of the weight average at steps start..stop-1: float64.

    Warmed up as min(d, (1 + t) / (10 + t)), the rule of TensorFlow's ``ExponentialMovingAverage``; without
    it the average would stay near the initial weights for the whole first epoch.
    """
    step = np.arange(start, stop)
    return np.minimum(recipe.ema or 0.0, (1 + step) / (10 + step))
