"""Train a network in Flax: ``python -m jax_impl.train --help``."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.numpy import dtype as DType

from jax_impl.data import read_mnist
from jax_impl.devices import Devices, run
from jax_impl.loop import StepLoop, configure
from jax_impl.model import ConvNet, State, tensors_of, with_tensors
from recipe.augmentation import SIDE, UNIT, crop, pad, warp
from recipe.checkpoint import Tensors, tensor_shapes
from recipe.console import run_command
from recipe.data import EVALUATION_BATCH, MEAN, STD, Dataset
from recipe.networks import Network
from recipe.plan import Plan
from recipe.recipes import PRECISIONS, Precision, Recipe
from recipe.rounding import MOMENTUM, STATE, round_to_grid
from recipe.run import TrainOptions


def normalise(pixels: Array, white: int, dtype: DType) -> Array:
    """Integers (N, 28, 28), 0 to ``white``, to normalised images (N, 28, 28, 1)."""
    return (pixels.astype(dtype) * (1 / (white * STD)) - MEAN / STD)[..., None]


def prepare_images(padded: Array, indices: Array, affine: Array, dtype: DType) -> Array:
    """One batch of training images, warped unless ``affine`` is empty."""
    if len(affine) == 0:
        return normalise(crop(padded[indices]), 255, dtype)
    side = jnp.arange(SIDE, dtype=jnp.int32)
    return normalise(warp(padded, affine, indices[:, None, None], side[:, None], side), UNIT, dtype)


def training_loss(
    model: ConvNet, recipe: Recipe, dtype: DType, padded: Array, labels: Array, step: Plan
) -> tuple[Array, Array]:
    """Mean cross entropy of one step's batch and the number of correct predictions.

    With several devices, this one's share of both. The running statistics of the model, which is in training
    mode, are updated.

    Args:
        model: in training mode.
        recipe: for label smoothing.
        dtype: the type to compute in.
        padded: all training images, from `recipe.augmentation.pad`.
        labels: all training labels, uint8.
        step: one step of a plan.
    """
    images, targets = prepare_images(padded, step.indices, step.affine, dtype), labels[step.indices]
    logits = model(images, step.dropout_keys)
    one_hot = jax.nn.one_hot(targets, logits.shape[1], dtype=logits.dtype)
    loss = optax.softmax_cross_entropy(logits, optax.smooth_labels(one_hot, recipe.label_smoothing)).mean()
    return loss / model.devices.count, (logits.argmax(1) == targets).sum()


def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """SGD with momentum, without its learning rate; weight decay on the convolution kernels only."""

    def kernels(params: State) -> dict[str, bool]:
        return {name: parameter.ndim == 4 for name, parameter in params.items()}

    decay = optax.add_decayed_weights(recipe.weight_decay, kernels)
    return optax.chain(decay, optax.trace(recipe.momentum, recipe.nesterov))


def train_step(
    model: ConvNet,
    recipe: Recipe,
    dtype: DType,
    on_grid: bool,
    padded: Array,
    labels: Array,
    state: State,
    step: Plan,
) -> tuple[State, tuple[Array, Array]]:
    """Take one step; returns the new state, and the loss and correct predictions before its update."""
    network, devices = model.network, model.devices
    params = {name: state[name] for name in network.parameters}
    statistics = {name: state[name] for name in network.buffers}

    def loss_fn(params: State) -> tuple[Array, tuple[State, Array]]:
        copy = with_tensors(model, params | statistics)
        loss, correct = training_loss(copy, recipe, dtype, padded, labels, step)
        return loss, (tensors_of(copy, nnx.BatchStat), correct)

    (loss, (statistics, correct)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    grads, loss, correct = devices.sum((grads, loss, correct))
    return update(make_optimizer(recipe), network, on_grid, state | statistics, grads, step), (loss, correct)


def update(
    optimizer: optax.GradientTransformation,
    network: Network,
    on_grid: bool,
    state: State,
    grads: State,
    step: Plan,
) -> State:
    """Take the optimizer's step, and average <- decay average + (1 - decay) model where there is an average.

    The average is of parameters and statistics. On the grid, the whole new state is rounded to it.
    """
    params = {name: state[name] for name in network.parameters}
    momentum = {name: state[f"momentum/{name}"] for name in network.parameters}
    opt_state = optax.tree.set(optimizer.init(params), trace=momentum)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    params: Any = optax.apply_updates(params, optax.tree.scale(-step.lr, updates))
    state = state | params
    state |= {f"momentum/{name}": array for name, array in optax.tree.get(opt_state, "trace").items()}
    for name in (*network.parameters, *network.buffers):
        if f"average/{name}" in state:
            average: Any = optax.incremental_update(state[name], state[f"average/{name}"], 1 - step.ema_decay)
            state[f"average/{name}"] = average
    if on_grid:
        for name, array in state.items():
            state[name] = round_to_grid(array, MOMENTUM if name.startswith("momentum/") else STATE)
    return state


def predict_batch(model: ConvNet, dtype: DType, padded: Array) -> Array:
    """Logits (N, 10) of padded images, by the model in evaluation mode."""
    model.eval()
    return model(normalise(crop(padded), 255, dtype))


class Trainer:
    """Model, optimizer and data on the devices; see `recipe.run.Trainer`."""

    framework: ClassVar[str] = "jax"
    packages: ClassVar[tuple[str, ...]] = ("jax", "flax", "optax", "tensorflow-datasets", "numpy")
    read_mnist = staticmethod(read_mnist)

    def __init__(
        self, network: Network, recipe: Recipe, dataset: Dataset, devices: Devices, precision: Precision
    ):
        configure(precision)
        self.devices = devices
        self.dtype = DType(PRECISIONS[precision].compute_dtype)
        self.train_images = devices.put(pad(dataset.train_images))
        self.train_labels = devices.put(dataset.train_labels)
        self.val_images = devices.put(pad(dataset.val_images))
        self.val_labels = devices.put(dataset.val_labels)

        self.model = ConvNet(network, recipe.dropout, devices)
        averages = recipe.ema_decay is not None
        # The tensors of a checkpoint, under its names; a step returns new ones.
        shapes = tensor_shapes(network, averages)
        zeros = {name: np.zeros(shape, PRECISIONS[precision].dtype) for name, shape in shapes.items()}
        self.state = devices.put(zeros)
        on_grid = PRECISIONS[precision].on_grid
        step_fn = partial(train_step, self.model, recipe, self.dtype, on_grid)
        self.loop = StepLoop(step_fn, self.train_images, self.train_labels, devices)
        self.predict_fn = jax.jit(
            lambda tensors, padded: predict_batch(with_tensors(self.model, tensors), self.dtype, padded)
        )

    def load(self, tensors: Tensors) -> None:
        """Set the state from a checkpoint's tensors."""
        self.state = self.devices.put({name: tensors[name] for name in self.state})

    def tensors(self) -> Tensors:
        """The state as a checkpoint's tensors."""
        return {name: np.asarray(array) for name, array in self.devices.fetch(self.state).items()}

    def train(self, plan: Plan, advance: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray]:
        """Take the plan's steps; returns loss and number of correct predictions of each."""
        self.model.train()
        self.state, results = self.loop.run(self.state, plan, advance)
        return results

    def predict(self) -> np.ndarray:
        """Logits (N, 10) of the validation images, by the averaged weights if there are any."""
        return np.asarray(self.val_logits())

    def val_logits(self) -> Array:
        """The logits of `predict`, on the device."""
        state, network = self.devices.fetch(self.state), self.model.network
        names = (*network.parameters, *network.buffers)
        average = {name: state.get(f"average/{name}", state[name]) for name in names}
        ends = np.arange(EVALUATION_BATCH, len(self.val_images), EVALUATION_BATCH)
        batches = jnp.split(self.devices.fetch(self.val_images), ends)
        return jnp.concatenate([self.predict_fn(average, images) for images in batches])

    def evaluate(self) -> tuple[float, float]:
        """Loss and accuracy on the validation images."""
        logits, labels = self.val_logits(), self.devices.fetch(self.val_labels)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        accuracy = np.asarray(logits.argmax(1) == labels).mean()
        return float(loss), float(accuracy)


def main(options: TrainOptions) -> None:
    """Train as the command line says."""
    run(options, Trainer)


if __name__ == "__main__":
    run_command(TrainOptions, main, f"python -m {__package__}.train")
