"""Train many seeds at once in Flax, by `jax.vmap` over the seeds of a whole epoch.

On a GPU a single one of these networks leaves most of the device idle.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from jax_impl.model import ConvNet
from jax_impl.train import State, Trainer, configure, logits, select_device, train_steps
from recipe.checkpoint import Tensors
from recipe.data import Split
from recipe.networks import Network
from recipe.plan import Plan
from recipe.recipes import Recipe
from recipe.seeds import stack_plans

EVALUATION_BATCH = 2000  # images at once, of all seeds together


class SeedsTrainer:
    """Models and optimizers of many seeds and one copy of the data on one device.

    Args:
        network: of every seed.
        recipe: of every seed.
        split: the data.
        device: auto, cpu or cuda.
        precision: see `recipe.options.PRECISIONS`.
        seeds: how many.
        products: compute convolutions as matrix products; None: on a GPU.
    """

    def __init__(
        self,
        network: Network,
        recipe: Recipe,
        split: Split,
        device: str,
        precision: str,
        seeds: int,
        products: bool | None = None,
    ):
        configure(precision)
        on_gpu = select_device(device).platform == "gpu"
        model = ConvNet(network, recipe.dropout, on_gpu if products is None else products)
        self.seeds = seeds
        self.trainer = Trainer(
            network, recipe, split, device, precision, model, train_seeds_steps, seeds_logits
        )
        self.device = self.trainer.device

    def load(self, tensors: Sequence[Tensors]) -> None:
        """Take over the canonical state of each seed."""
        assert len(tensors) == self.seeds
        states = []
        for each in tensors:
            self.trainer.load(each)
            states.append(self.trainer.state)
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
        self.trainer.state = jax.device_put(stacked, self.trainer.place, may_alias=False)

    def tensors(self) -> list[Tensors]:
        """The canonical state of each seed."""
        stacked, found = self.trainer.state, []
        host = jax.device_get(stacked)
        for seed in range(self.seeds):
            self.trainer.state = jax.tree.map(lambda leaf, seed=seed: leaf[seed], host)
            found.append(self.trainer.tensors())
        self.trainer.state = stacked
        return found

    def train(self, plans: Sequence[Plan]) -> tuple[np.ndarray, np.ndarray]:
        """Take the steps of one plan a seed; returns loss and number of correct predictions: (S, seeds)."""
        assert len(plans) == self.seeds
        return self.trainer.train(stack_plans(plans), lambda _: None)

    def predict(self) -> np.ndarray:
        """Logits (seeds, N, 10) of the validation images, by the averaged weights if there are any."""
        return np.asarray(self.val_logits())

    def val_logits(self) -> Array:
        """`predict`'s logits on the device."""
        return self.trainer.val_logits(max(1, EVALUATION_BATCH // self.seeds))

    def evaluate(self) -> list[tuple[float, float]]:
        """Loss and accuracy of each seed on the validation images."""
        logits, labels = self.val_logits(), jnp.tile(self.trainer.val_labels, (self.seeds, 1))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(1)
        accuracies = np.asarray(logits.argmax(2) == labels).mean(1)
        return list(zip(losses.tolist(), accuracies.tolist(), strict=True))


def train_seeds_steps(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    recipe: Recipe,
    dtype: jnp.dtype,
    state: State,
    padded: Array,
    labels: Array,
    steps: tuple[Array, ...],
) -> tuple[State, tuple[Array, Array]]:
    """`jax_impl.train.train_steps` of each seed, the second axis of images, maps and keys."""
    one = partial(train_steps, graph, optimizer, recipe, dtype)
    return jax.vmap(one, in_axes=(0, None, None, (1, 1, 1, None, None)), out_axes=(0, 1))(
        state, padded, labels, steps
    )


def seeds_logits(
    graph: nnx.GraphDef, dtype: jnp.dtype, parameters: nnx.State, statistics: nnx.State, padded: Array
) -> Array:
    """Logits in evaluation mode: (seeds, N, 10)."""
    one = partial(logits, graph, dtype)
    return jax.vmap(one, in_axes=(0, 0, None))(parameters, statistics, padded)
