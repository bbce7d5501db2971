"""Train a network in Flax: ``python -m jax_impl.train --help``."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array, lax

from jax_impl.data import read_mnist
from jax_impl.model import ConvNet, dump_tensors, load_tensors
from recipe.checkpoint import Tensors
from recipe.data import Split, cache_folder
from recipe.errors import UserError
from recipe.networks import Network
from recipe.options import PRECISIONS, TrainOptions, run_command
from recipe.plan import Plan
from recipe.recipes import Recipe
from recipe.run import Framework, train
from recipe.warp import MEAN, SIDE, STD, UNIT, crop, pad, warp

EVALUATION_BATCH = 1000


class State(NamedTuple):
    """Everything that a step changes."""

    parameters: nnx.State
    statistics: nnx.State
    momentum: Any  # Optax's state
    average: tuple[nnx.State, nnx.State] | None  # of parameters and statistics
    gradients: nnx.State  # of the last step


def select_device(name: str) -> Any:
    """The device that ``--device`` names.

    Raises:
        UserError: CUDA is asked for and there is none.
    """
    gpus = [device for device in jax.devices() if device.platform == "gpu"]
    if name == "cuda" and not gpus:
        raise UserError("--device cuda: JAX sees no CUDA device here; use --device cpu or auto")
    return gpus[0] if name != "cpu" and gpus else jax.devices("cpu")[0]


def configure(precision: str) -> None:
    """Set JAX up, for the whole process; before any array is made."""
    jax.config.update("jax_enable_x64", precision == "float64")
    jax.config.update("jax_default_matmul_precision", "highest")  # not TF32, which has ten bits
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


class Trainer:
    """Model, optimizer and data on one device; see `recipe.run.Trainer`.

    `jax_impl.seeds` gives it another model, and steps and logits over many states.
    """

    def __init__(
        self,
        network: Network,
        recipe: Recipe,
        split: Split,
        device: str,
        precision: str,
        model: ConvNet | None = None,
        steps: Callable[..., Any] | None = None,
        val_logits: Callable[..., Array] | None = None,
    ):
        configure(precision)
        self.network, self.recipe = network, recipe
        self.place = place = select_device(device)
        self.dtype, self.compute = map(jnp.dtype, PRECISIONS[precision])
        self.device = place.device_kind if place.platform == "gpu" else "cpu"
        self.graph, parameters, statistics = nnx.split(
            model or ConvNet(network, recipe.dropout), nnx.Param, nnx.BatchStat
        )
        self.optimizer = make_optimizer(recipe)
        average = (parameters, statistics) if recipe.ema is not None else None
        self.state = State(parameters, statistics, self.optimizer.init(parameters), average, parameters)
        self.train_images = jax.device_put(pad(split.train_images), place)
        self.train_labels = jax.device_put(split.train_labels.astype(np.int32), place)
        self.val_images = jax.device_put(pad(split.val_images), place)
        self.val_labels = jax.device_put(split.val_labels.astype(np.int32), place)
        take = partial(steps or train_steps, self.graph, self.optimizer, recipe, self.compute)
        self.steps = jax.jit(take, donate_argnums=0)
        self.logits = jax.jit(partial(val_logits or logits, self.graph, self.compute))

    def load(self, tensors: Tensors) -> None:
        """Take over a canonical state."""
        parameters = load_tensors(self.state.parameters, tensors, self.network.parameters)
        statistics = load_tensors(self.state.statistics, tensors, self.network.buffers)
        momentum = load_tensors(parameters, tensors, self.network.parameters, "momentum/")
        average = None
        if self.recipe.ema is not None:
            average = (
                load_tensors(parameters, tensors, self.network.parameters, "average/"),
                load_tensors(statistics, tensors, self.network.buffers, "average/"),
            )
        gradients = jax.tree.map(jnp.zeros_like, parameters)
        optimizer_state = optax.tree.set(self.optimizer.init(parameters), trace=momentum)
        state = State(parameters, statistics, optimizer_state, average, gradients)
        self.state = jax.device_put(state, self.place, may_alias=False)

    def tensors(self) -> Tensors:
        """The canonical state."""
        state, parameters, buffers = self.state, self.network.parameters, self.network.buffers
        momentum = dump_tensors(optax.tree.get(state.momentum, "trace"), parameters, "momentum/")
        average = {}
        if state.average is not None:
            average = dump_tensors(state.average[0], parameters, "average/")
            average |= dump_tensors(state.average[1], buffers, "average/")
        model = dump_tensors(state.parameters, parameters) | dump_tensors(state.statistics, buffers)
        return model | momentum | average

    def gradients(self) -> Tensors:
        """The gradients of the last step, by canonical name."""
        return dump_tensors(self.state.gradients, self.network.parameters)

    def train(self, plan: Plan, done: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray]:
        """Take the plan's steps; returns loss and number of correct predictions of each."""
        steps = (
            plan.images,
            plan.maps,
            plan.keys,
            plan.rates.astype(self.dtype),
            plan.decays.astype(self.dtype),
        )
        steps = jax.device_put(steps, self.place)
        self.state, (losses, correct) = self.steps(self.state, self.train_images, self.train_labels, steps)
        while not losses.is_ready():  # one call for the whole epoch; Ctrl-C is heard in between
            time.sleep(0.01)
        done(len(plan))
        return np.asarray(losses, np.float64), np.asarray(correct)

    def predict(self) -> np.ndarray:
        """Logits (N, 10) of the validation images, by the averaged weights if there are any."""
        return np.asarray(self.val_logits())

    def val_logits(self, batch: int = EVALUATION_BATCH) -> Array:
        """`predict`'s logits on the device, of so many images at once."""
        model = self.state.average or (self.state.parameters, self.state.statistics)
        batches = [self.val_images[start : start + batch] for start in range(0, len(self.val_images), batch)]
        return jnp.concatenate([self.logits(*model, images) for images in batches], axis=-2)

    def evaluate(self) -> tuple[float, float]:
        """Loss and accuracy on the validation images."""
        logits = self.val_logits()
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, self.val_labels).mean()
        accuracy = np.asarray(logits.argmax(1) == self.val_labels).mean()
        return float(loss), float(accuracy)


def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """SGD with momentum, but for the learning rate; weight decay on the convolution kernels only."""

    def kernels(parameters: nnx.State) -> nnx.State:
        return jax.tree.map(lambda parameter: parameter.ndim == 4, parameters)

    decay = optax.add_decayed_weights(recipe.weight_decay, kernels)
    return optax.chain(decay, optax.trace(recipe.momentum, recipe.nesterov))


def normalise(pixels: Array, white: int, dtype: jnp.dtype) -> Array:
    """Integers (N, 28, 28), 0 to ``white``, to normalised images (N, 28, 28, 1)."""
    return (pixels.astype(dtype) * (1 / (white * STD)) - MEAN / STD)[..., None]


def prepare_images(padded: Array, positions: Array, maps: Array, dtype: jnp.dtype) -> Array:
    """One batch of training images, warped if there are maps: (B, 28, 28, 1)."""
    if len(maps) == 0:
        return normalise(crop(padded[positions]), 255, dtype)
    side = jnp.arange(SIDE, dtype=jnp.int32)
    return normalise(warp(padded, maps, positions[:, None, None], side[:, None], side), UNIT, dtype)


def training_loss(
    parameters: nnx.State,
    statistics: nnx.State,
    graph: nnx.GraphDef,
    recipe: Recipe,
    images: Array,
    wanted: Array,
    keys: Array,
) -> tuple[Array, tuple[nnx.State, Array]]:
    """Mean cross entropy of one batch; beside it the new statistics and the number of correct predictions."""
    model = nnx.merge(graph, parameters, statistics, copy=True)
    logits = model(images, keys, train=True)
    targets = optax.smooth_labels(
        jax.nn.one_hot(wanted, logits.shape[1], dtype=logits.dtype), recipe.label_smoothing
    )
    loss = optax.softmax_cross_entropy(logits, targets).mean()
    return loss, (nnx.state(model, nnx.BatchStat), (logits.argmax(1) == wanted).sum())


def train_steps(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    recipe: Recipe,
    dtype: jnp.dtype,
    state: State,
    padded: Array,
    labels: Array,
    steps: tuple[Array, ...],
) -> tuple[State, tuple[Array, Array]]:
    """Scan over the plan's steps; returns the new state, and loss and correct predictions of each step."""

    def step(state: State, given: tuple[Array, ...]) -> tuple[State, tuple[Array, Array]]:
        positions, maps, keys, rate, decay = given
        images = prepare_images(padded, positions, maps, dtype)
        (loss, (statistics, correct)), gradients = jax.value_and_grad(training_loss, has_aux=True)(
            state.parameters, state.statistics, graph, recipe, images, labels[positions], keys
        )
        updates, momentum = optimizer.update(gradients, state.momentum, state.parameters)
        parameters: Any = optax.apply_updates(state.parameters, optax.tree.scale(-rate, updates))
        average: Any = None
        if state.average is not None:
            average = optax.incremental_update((parameters, statistics), state.average, 1 - decay)
        return State(parameters, statistics, momentum, average, gradients), (loss, correct)

    return lax.scan(step, state, steps)


def logits(
    graph: nnx.GraphDef, dtype: jnp.dtype, parameters: nnx.State, statistics: nnx.State, padded: Array
) -> Array:
    """Logits in evaluation mode: (N, 10)."""
    return nnx.merge(graph, parameters, statistics)(normalise(crop(padded), 255, dtype))


FRAMEWORK = Framework("jax", ("jax", "flax", "optax", "tensorflow-datasets", "numpy"), Trainer, read_mnist)


def main(options: TrainOptions) -> None:
    """Train as the command line says."""
    train(options, FRAMEWORK)


if __name__ == "__main__":
    run_command(TrainOptions, main, "python -m jax_impl.train")
