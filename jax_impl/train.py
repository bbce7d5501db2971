"""Train a network in Flax: ``python -m jax_impl.train --help``."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array, lax

from jax_impl.data import read_mnist
from jax_impl.devices import Devices, run
from jax_impl.model import ConvNet, dump_tensors, load_tensors
from recipe.augmentation import SIDE, UNIT, crop, pad, warp
from recipe.checkpoint import Tensors
from recipe.console import run_command
from recipe.data import EVALUATION_BATCH, MEAN, STD, Dataset, cache_folder
from recipe.networks import Network
from recipe.plan import Plan
from recipe.recipes import PRECISIONS, Precision, Recipe
from recipe.rounding import MOMENTUM, STATE, round_to_grid
from recipe.run import TrainOptions


def normalise(pixels: Array, white: int, dtype: jnp.dtype) -> Array:
    """Integers (N, 28, 28), 0 to ``white``, to normalised images (N, 28, 28, 1)."""
    return (pixels.astype(dtype) * (1 / (white * STD)) - MEAN / STD)[..., None]


def prepare_images(padded: Array, indices: Array, affine: Array, dtype: jnp.dtype) -> Array:
    """One batch of training images, warped unless ``affine`` is empty: (B, 28, 28, 1)."""
    if len(affine) == 0:
        return normalise(crop(padded[indices]), 255, dtype)
    side = jnp.arange(SIDE, dtype=jnp.int32)
    return normalise(warp(padded, affine, indices[:, None, None], side[:, None], side), UNIT, dtype)


def training_loss(
    model: ConvNet, recipe: Recipe, dtype: jnp.dtype, padded: Array, labels: Array, step: Plan
) -> tuple[Array, Array]:
    """Mean cross entropy of one step's batch and the number of correct predictions.

    With several devices, this one's share of both. The running statistics of the model, which is in training
    mode, are updated.

    Args:
        model: in training mode.
        recipe: for label smoothing.
        dtype: the type to compute in.
        padded: all training images, from `recipe.augmentation.pad`.
        labels: all training labels, int32.
        step: one step of a plan.
    """
    images, targets = prepare_images(padded, step.indices, step.affine, dtype), labels[step.indices]
    logits = model(images, step.dropout_keys)
    one_hot = jax.nn.one_hot(targets, logits.shape[1], dtype=logits.dtype)
    loss = optax.softmax_cross_entropy(logits, optax.smooth_labels(one_hot, recipe.label_smoothing)).mean()
    return loss / model.devices.count, (logits.argmax(1) == targets).sum()


def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """SGD with momentum, without its learning rate; weight decay on the convolution kernels only."""

    def kernels(params: nnx.State) -> nnx.State:
        return jax.tree.map(lambda parameter: parameter.ndim == 4, params)

    decay = optax.add_decayed_weights(recipe.weight_decay, kernels)
    return optax.chain(decay, optax.trace(recipe.momentum, recipe.nesterov))


class State(NamedTuple):
    """Everything that a step changes."""

    params: nnx.State
    batch_stats: nnx.State
    opt_state: Any  # Optax's
    ema: tuple[nnx.State, nnx.State] | None  # of parameters and statistics


def train_step(
    optimizer: optax.GradientTransformation,
    devices: Devices,
    loss_fn: Callable[..., tuple[Array, tuple[nnx.State, Array]]],
    on_grid: bool,
    state: State,
    step: Plan,
) -> tuple[State, tuple[Array, Array]]:
    """Take one step; returns the loss and the number of correct predictions before its update.

    Rounds the new state to the grid if it belongs there.
    """
    (loss, (batch_stats, correct)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        state.params, state.batch_stats, step
    )
    grads, loss, correct = devices.sum((grads, loss, correct))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, optax.tree.scale(-step.lr, updates))
    ema: Any = state.ema
    if ema is not None:  # ema <- decay ema + (1 - decay) model, parameters and statistics
        ema = optax.incremental_update((params, batch_stats), ema, 1 - step.ema_decay)
    if on_grid:
        params, batch_stats, ema = jax.tree.map(
            lambda leaf: round_to_grid(leaf, STATE), (params, batch_stats, ema)
        )
        opt_state = jax.tree.map(lambda leaf: round_to_grid(leaf, MOMENTUM), opt_state)
    return State(params, batch_stats, opt_state, ema), (loss, correct)


def train_steps(
    graph: nnx.GraphDef,
    recipe: Recipe,
    devices: Devices,
    dtype: jnp.dtype,
    on_grid: bool,
    state: State,
    padded: Array,
    labels: Array,
    plan: Plan,
) -> tuple[State, tuple[Array, Array]]:
    """All steps of a plan in one scan; returns loss and number of correct predictions of each."""

    def loss_fn(
        params: nnx.State, batch_stats: nnx.State, step: Plan
    ) -> tuple[Array, tuple[nnx.State, Array]]:
        model = nnx.merge(graph, params, batch_stats, copy=True)
        loss, correct = training_loss(model, recipe, dtype, padded, labels, step)
        return loss, (nnx.state(model, nnx.BatchStat), correct)

    return lax.scan(partial(train_step, make_optimizer(recipe), devices, loss_fn, on_grid), state, plan)


def predict_batch(model: ConvNet, dtype: jnp.dtype, padded: Array) -> Array:
    """Logits (N, 10) of padded images, by the model in evaluation mode."""
    model.eval()
    return model(normalise(crop(padded), 255, dtype))


def configure(precision: Precision) -> None:
    """Set up JAX for the whole process, before any array is made."""
    jax.config.update("jax_enable_x64", PRECISIONS[precision].dtype == "float64")
    jax.config.update("jax_default_matmul_precision", "highest")  # not TF32, which has ten bits
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


class Trainer:
    """Model, optimizer and data on the devices; see `recipe.run.Trainer`."""

    framework: ClassVar[str] = "jax"
    packages: ClassVar[tuple[str, ...]] = ("jax", "flax", "optax", "tensorflow-datasets", "numpy")
    read_mnist = staticmethod(read_mnist)

    def __init__(
        self, network: Network, recipe: Recipe, dataset: Dataset, devices: Devices, precision: Precision
    ):
        configure(precision)
        self.network, self.recipe, self.devices = network, recipe, devices
        self.dtype = jnp.dtype(PRECISIONS[precision].dtype)
        self.compute_dtype = jnp.dtype(PRECISIONS[precision].compute_dtype)
        self.train_images = jax.device_put(pad(dataset.train_images), devices.placement)
        self.train_labels = jax.device_put(dataset.train_labels.astype(np.int32), devices.placement)
        self.val_images = jax.device_put(pad(dataset.val_images), devices.device)
        self.val_labels = jax.device_put(dataset.val_labels.astype(np.int32), devices.device)

        self.graph, params, batch_stats = nnx.split(
            ConvNet(network, recipe.dropout, devices), nnx.Param, nnx.BatchStat
        )
        averages = recipe.ema_decay is not None
        ema = (params, batch_stats) if averages else None
        self.state = State(params, batch_stats, make_optimizer(recipe).init(params), ema)
        on_grid = PRECISIONS[precision].on_grid
        steps_fn = partial(train_steps, self.graph, recipe, devices, self.compute_dtype, on_grid)
        self.steps_fn = jax.jit(devices.share_steps(steps_fn), donate_argnums=0)
        self.compiled: dict[int, Callable[..., Any]] = {}  # by the number of steps
        self.predict_fn = jax.jit(
            lambda model, padded: predict_batch(nnx.merge(self.graph, *model), self.compute_dtype, padded)
        )

    def load(self, tensors: Tensors) -> None:
        """Set the state from canonical tensors."""
        params, batch_stats = self._to_states(tensors)
        ema = self._to_states(tensors, "average/") if self.state.ema is not None else None
        momentum, _ = self._to_states(tensors, "momentum/")
        opt_state = optax.tree.set(make_optimizer(self.recipe).init(params), trace=momentum)
        state = State(params, batch_stats, opt_state, ema)
        self.state = jax.device_put(state, self.devices.placement, may_alias=False)

    def tensors(self) -> Tensors:
        """The state as canonical tensors."""
        params, batch_stats, opt_state, ema = self.devices.fetch(self.state)
        trace = dump_tensors(
            nnx.merge(self.graph, optax.tree.get(opt_state, "trace"), batch_stats), "momentum/"
        )
        momentum = {name: trace[name] for name in map("momentum/{}".format, self.network.parameters)}
        average = dump_tensors(nnx.merge(self.graph, *ema), "average/") if ema is not None else {}
        return dump_tensors(nnx.merge(self.graph, params, batch_stats)) | momentum | average

    def _to_states(self, tensors: Tensors, prefix: str = "") -> tuple[nnx.State, nnx.State]:
        """Parameters and running statistics of a network with these canonical tensors."""
        model = ConvNet(self.network, self.recipe.dropout, self.devices)
        load_tensors(model, tensors, prefix)
        _, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)
        return params, batch_stats

    def train(self, plan: Plan, advance: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray]:
        """Take the plan's steps; returns loss and number of correct predictions of each."""
        plan = plan._replace(lr=plan.lr.astype(self.dtype), ema_decay=plan.ema_decay.astype(self.dtype))
        arguments = (self.train_images, self.train_labels, jax.device_put(plan, self.devices.placement))
        if plan.steps not in self.compiled:
            self.compiled[plan.steps] = self.steps_fn.lower(self.state, *arguments).compile()
        advance(0)
        with self.devices.raise_if_lost():
            self.state, (losses, correct) = self.compiled[plan.steps](self.state, *arguments)
            while not losses.is_ready():  # one call takes the whole epoch; this loop lets Ctrl-C through
                time.sleep(0.01)
            advance(len(losses))
            return np.asarray(losses, np.float64), np.asarray(correct)

    def predict(self) -> np.ndarray:
        """Logits (N, 10) of the validation images, by the averaged weights if there are any."""
        return np.asarray(self.val_logits())

    def val_logits(self) -> Array:
        """The logits of `predict`, on the device."""
        model = self.devices.fetch(self.state.ema or (self.state.params, self.state.batch_stats))
        starts = range(0, len(self.val_images), EVALUATION_BATCH)
        batches = [self.val_images[start : start + EVALUATION_BATCH] for start in starts]
        return jnp.concatenate([self.predict_fn(model, images) for images in batches])

    def evaluate(self) -> tuple[float, float]:
        """Loss and accuracy on the validation images."""
        logits = self.val_logits()
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, self.val_labels).mean()
        accuracy = np.asarray(logits.argmax(1) == self.val_labels).mean()
        return float(loss), float(accuracy)


def main(options: TrainOptions) -> None:
    """Train as the command line says."""
    run(options, Trainer)


if __name__ == "__main__":
    run_command(TrainOptions, main, "python -m jax_impl.train")
