"""The two networks in Flax NNX the way its own MNIST tutorial trains: ``nnx.jit`` around one step.

https://flax.readthedocs.io/en/latest/mnist_tutorial.html, with these networks in place of the tutorial's, SGD
in place of AdamW, and batches from NumPy in place of TFDS, whose pipeline needs TensorFlow.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import jax
import numpy as np
import optax
from flax import nnx

LEARNING_RATE, MOMENTUM = 0.01, 0.9

Batch = dict[str, np.ndarray]  # image (N, 28, 28, 1), label (N,)

max_pool = partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2))


def conv_block(channels: int, filters: int, kernel: int, padding: str, rngs: nnx.Rngs) -> nnx.Sequential:
    """A block of net10040."""
    conv = nnx.Conv(channels, filters, (kernel, kernel), padding=padding, use_bias=False, rngs=rngs)
    norm = nnx.BatchNorm(filters, momentum=0.9, rngs=rngs)
    return nnx.Sequential(conv, norm, nnx.relu, nnx.Dropout(0.05, rngs=rngs))


def average(x: jax.Array) -> jax.Array:
    """(N, H, W, C) -> (N, C)."""
    return x.mean((1, 2))


def net10040() -> nnx.Sequential:
    """10,040 parameters, no biases in convolutions."""
    block, rngs = partial(conv_block, rngs=nnx.Rngs(0)), nnx.Rngs(1)
    return nnx.Sequential(
        *(block(1, 8, 3, "SAME"), block(8, 16, 3, "SAME"), block(16, 16, 3, "SAME"), max_pool),
        *(block(16, 8, 1, "SAME"), block(8, 16, 3, "SAME"), block(16, 16, 3, "SAME"), max_pool),
        *(block(16, 8, 1, "SAME"), block(8, 16, 3, "VALID")),
        *(nnx.Conv(16, 10, (3, 3), padding="VALID", use_bias=False, rngs=rngs), average),
    )


def net9954() -> nnx.Sequential:
    """9,954 parameters, batch norm after ReLU."""
    rngs = nnx.Rngs(0)
    conv = partial(nnx.Conv, padding="VALID", rngs=rngs)
    norm = partial(nnx.BatchNorm, momentum=0.9, rngs=rngs)
    return nnx.Sequential(
        *(conv(1, 8, (3, 3)), nnx.relu, norm(8), conv(8, 16, (3, 3)), nnx.relu, norm(16)),
        *(conv(16, 8, (1, 1)), max_pool, nnx.Dropout(0.3, rngs=rngs)),
        *(conv(8, 16, (3, 3)), nnx.relu, norm(16), conv(16, 16, (3, 3)), nnx.relu, norm(16)),
        *(max_pool, nnx.Dropout(0.3, rngs=rngs), conv(16, 32, (3, 3)), conv(32, 10, (1, 1)), average),
    )


def make_batches(
    images: np.ndarray, labels: np.ndarray, rng: np.random.Generator, batch: int
) -> Iterator[Batch]:
    """One pass over the images in shuffled whole batches, normalised."""
    order = rng.permutation(len(images))
    for start in range(0, len(images) - batch + 1, batch):
        chosen = order[start : start + batch]
        pixels = images[chosen, :, :, None].astype(np.float32) / 255
        yield {"image": (pixels - 0.1307) / 0.3081, "label": labels[chosen].astype(np.int32)}


def loss_fn(model: nnx.Sequential, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Mean cross entropy, and the logits."""
    logits = model(batch["image"])
    loss = optax.softmax_cross_entropy_with_integer_labels(logits=logits, labels=batch["label"]).mean()
    return loss, logits


@nnx.jit
def train_step(
    model: nnx.Sequential, optimizer: nnx.Optimizer, metrics: nnx.MultiMetric, batch: Batch
) -> None:
    """Take one step, in place."""
    (loss, logits), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model, batch)
    metrics.update(loss=loss, logits=logits, labels=batch["label"])
    optimizer.update(model, grads)


def make_training(model: nnx.Sequential, device: str) -> Callable[[Iterable[Batch]], tuple[float, float]]:
    """A function that trains on batches, on JAX's default device, and returns mean loss and accuracy."""
    optimizer = nnx.Optimizer(model, optax.sgd(LEARNING_RATE, MOMENTUM), wrt=nnx.Param)
    metrics = nnx.MultiMetric(accuracy=nnx.metrics.Accuracy(), loss=nnx.metrics.Average("loss"))

    def train(batches: Iterable[Batch]) -> tuple[float, float]:
        model.train()
        for batch in batches:
            train_step(model, optimizer, metrics, batch)
        values = metrics.compute()
        metrics.reset()
        return float(values["loss"]), float(values["accuracy"])

    return train
