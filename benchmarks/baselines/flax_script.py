"""The two networks in Flax NNX the way its own MNIST tutorial trains: ``nnx.jit`` around one step.

https://flax.readthedocs.io/en/latest/mnist_tutorial.html, with these networks in place of the tutorial's, SGD
in place of AdamW, and batches from NumPy in place of TFDS, whose pipeline needs TensorFlow.
``python benchmarks/baselines/flax_script.py net10040 mnist.npz``.
"""

import sys
from collections.abc import Iterable, Iterator
from functools import partial

import jax
import numpy as np
import optax
from flax import nnx

EPOCHS = {"net10040": 20, "net9954": 19}
BATCH = 128
LEARNING_RATE, MOMENTUM = 0.01, 0.9

Batch = dict[str, np.ndarray]


class ConvBlock(nnx.Module):
    """A block of net10040."""

    def __init__(self, channels: int, filters: int, kernel: int, padding: str, rngs: nnx.Rngs):
        self.conv = nnx.Conv(channels, filters, (kernel, kernel), padding=padding, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(filters, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.05, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, channels) -> (N, H', W', filters)."""
        return self.dropout(nnx.relu(self.norm(self.conv(x))))


max_pool = partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2))


class Net10040(nnx.Module):
    """10,040 parameters, no biases in convolutions."""

    def __init__(self, rngs: nnx.Rngs):
        self.block1 = ConvBlock(1, 8, 3, "SAME", rngs)
        self.block2 = ConvBlock(8, 16, 3, "SAME", rngs)
        self.block3 = ConvBlock(16, 16, 3, "SAME", rngs)
        self.block4 = ConvBlock(16, 8, 1, "SAME", rngs)
        self.block5 = ConvBlock(8, 16, 3, "SAME", rngs)
        self.block6 = ConvBlock(16, 16, 3, "SAME", rngs)
        self.block7 = ConvBlock(16, 8, 1, "SAME", rngs)
        self.block8 = ConvBlock(8, 16, 3, "VALID", rngs)
        self.conv9 = nnx.Conv(16, 10, (3, 3), padding="VALID", use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (N, 10) of images (N, 28, 28, 1)."""
        x = max_pool(self.block3(self.block2(self.block1(x))))
        x = max_pool(self.block6(self.block5(self.block4(x))))
        x = self.conv9(self.block8(self.block7(x)))
        return x.mean((1, 2))


class Net9954(nnx.Module):
    """9,954 parameters, batch norm after ReLU."""

    def __init__(self, rngs: nnx.Rngs):
        conv = partial(nnx.Conv, padding="VALID", rngs=rngs)
        norm = partial(nnx.BatchNorm, momentum=0.9, rngs=rngs)
        self.conv1, self.norm1 = conv(1, 8, (3, 3)), norm(8)
        self.conv2, self.norm2 = conv(8, 16, (3, 3)), norm(16)
        self.conv3 = conv(16, 8, (1, 1))
        self.conv4, self.norm4 = conv(8, 16, (3, 3)), norm(16)
        self.conv5, self.norm5 = conv(16, 16, (3, 3)), norm(16)
        self.conv6 = conv(16, 32, (3, 3))
        self.conv7 = conv(32, 10, (1, 1))
        self.dropout = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (N, 10) of images (N, 28, 28, 1)."""
        x = self.norm1(nnx.relu(self.conv1(x)))
        x = self.norm2(nnx.relu(self.conv2(x)))
        x = self.dropout(max_pool(self.conv3(x)))
        x = self.norm4(nnx.relu(self.conv4(x)))
        x = self.norm5(nnx.relu(self.conv5(x)))
        x = self.dropout(max_pool(x))
        return self.conv7(self.conv6(x)).mean((1, 2))


NETWORKS = {"net10040": Net10040, "net9954": Net9954}


def make_batches(
    images: np.ndarray, labels: np.ndarray, rng: np.random.Generator | None, batch: int = BATCH
) -> Iterator[Batch]:
    """One pass over the images in whole batches, normalised; shuffled if there is a generator."""
    order = rng.permutation(len(images)) if rng else np.arange(len(images))
    for start in range(0, len(images) - batch + 1, batch):
        chosen = order[start : start + batch]
        pixels = images[chosen, :, :, None].astype(np.float32) / 255
        yield {"image": (pixels - 0.1307) / 0.3081, "label": labels[chosen].astype(np.int32)}


def loss_fn(model: nnx.Module, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Mean cross entropy, and the logits."""
    logits = model(batch["image"])  # pyright: ignore[reportCallIssue]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits=logits, labels=batch["label"]).mean()
    return loss, logits


@nnx.jit
def train_step(model: nnx.Module, optimizer: nnx.Optimizer, metrics: nnx.MultiMetric, batch: Batch) -> None:
    """Take one step, in place."""
    (loss, logits), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model, batch)
    metrics.update(loss=loss, logits=logits, labels=batch["label"])
    optimizer.update(model, grads)


@nnx.jit
def eval_step(model: nnx.Module, metrics: nnx.MultiMetric, batch: Batch) -> None:
    """Add a batch to the metrics."""
    loss, logits = loss_fn(model, batch)
    metrics.update(loss=loss, logits=logits, labels=batch["label"])


def make_model(network: str) -> tuple[nnx.Module, nnx.Optimizer, nnx.MultiMetric]:
    """The network, its optimizer and metrics."""
    model = NETWORKS[network](rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(LEARNING_RATE, MOMENTUM), wrt=nnx.Param)
    metrics = nnx.MultiMetric(accuracy=nnx.metrics.Accuracy(), loss=nnx.metrics.Average("loss"))
    return model, optimizer, metrics


def train(
    model: nnx.Module, optimizer: nnx.Optimizer, metrics: nnx.MultiMetric, batches: Iterable[Batch]
) -> tuple[float, float]:
    """Train on batches; returns mean loss and accuracy."""
    model.train()
    for batch in batches:
        train_step(model, optimizer, metrics, batch)
    values = metrics.compute()
    metrics.reset()
    return float(values["loss"]), float(values["accuracy"])


def evaluate(model: nnx.Module, metrics: nnx.MultiMetric, batches: Iterable[Batch]) -> float:
    """Accuracy (0 to 1)."""
    model.eval()
    for batch in batches:
        eval_step(model, metrics, batch)
    accuracy = float(metrics.compute()["accuracy"])
    metrics.reset()
    return accuracy


def main(network: str = "net10040", path: str = "mnist.npz") -> None:
    """Train on the arrays of an ``.npz`` file, and print."""
    with np.load(path, allow_pickle=False) as archive:
        data = dict(archive)
    model, optimizer, metrics = make_model(network)
    rng = np.random.default_rng(0)
    for epoch in range(1, EPOCHS[network] + 1):
        batches = make_batches(data["train_images"], data["train_labels"], rng)
        loss, accuracy = train(model, optimizer, metrics, batches)
        batches = make_batches(data["test_images"], data["test_labels"], None, 1000)
        test_accuracy = evaluate(model, metrics, batches)
        print(f"epoch {epoch}: loss {loss:.4f}, accuracy {accuracy:.2%}, test accuracy {test_accuracy:.2%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
