"""The networks in Flax NNX, built from their layer tables. Images are NHWC."""

from math import prod
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from jax_impl.devices import Devices, select_devices
from jax_impl.ops import avg_pool, batch_norm, compute_once, conv2d, max_pool
from recipe.checkpoint import Tensors, find_checkpoint, load_checkpoint
from recipe.networks import Average, AvgPool, Conv, Dropout, Layer, MaxPool, Network, Norm, Relu, Shape
from recipe.random_numbers import keep_mask


class ConvNet(nnx.Module):
    """A network of `recipe.networks`; its modules have the table's layer names.

    Args:
        network: the layers.
        dropout: probability of dropping.
        devices: that share a batch.
    """

    def __init__(self, network: Network, dropout: float, devices: Devices):
        self.network = network
        self.dropout = dropout
        self.devices = devices
        for layer in network.layers:
            if (module := build_layer(layer, devices)) is not None:
                setattr(self, layer.name, module)

    def __call__(self, x: Array, dropout_keys: Array | None = None) -> Array:
        """Logits.

        Args:
            x: normalised images (N, 28, 28, 1), in the type to compute in.
            dropout_keys: int32 (dropout layers, 2), see `recipe.random_numbers.epoch_dropout_keys`.
                None: no dropout.

        Returns:
            (N, 10), at least float32.
        """
        dropouts = 0
        for layer in self.network.layers:
            operation = layer.operation
            if isinstance(operation, Conv | Norm):
                x = getattr(self, layer.owner)(x)
            elif isinstance(operation, Relu):
                x = nnx.relu(x)
            elif isinstance(operation, MaxPool):
                x = max_pool(x)
            elif isinstance(operation, AvgPool):
                x = avg_pool(x)
            elif isinstance(operation, Average):
                x = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2), keepdims=True)
            elif isinstance(operation, Dropout):
                if dropout_keys is not None and self.dropout:
                    first = self.devices.index * len(x)
                    x = drop(x, self.dropout, dropout_keys[dropouts], number_elements(layer.out_shape), first)
                dropouts += 1
        return x.reshape(x.shape[0], -1)


def build_layer(layer: Layer, devices: Devices) -> nnx.Module | None:
    """The module that holds a layer's own tensors; None for a layer without any."""
    channels = layer.in_shape[0]
    match layer.operation:
        case Conv(filters, kernel, pad, bias, None):
            return Convolution(channels, filters, kernel, pad, bias)
        case Norm(epsilon, momentum):
            return BatchNorm(channels, epsilon, momentum, devices)
    return None


class Convolution(nnx.Module):
    """Convolution with explicit padding; ``nnx.Conv``'s parameters under the same names."""

    def __init__(self, channels: int, filters: int, kernel: int, pad: int, bias: bool):
        self.kernel = nnx.Param(jnp.zeros((kernel, kernel, channels, filters)))
        self.bias = nnx.Param(jnp.zeros(filters)) if bias else None
        self.pad = pad

    def __call__(self, x: Array) -> Array:
        """(N, H, W, channels) -> (N, H', W', filters), in x's type, which may be less precise."""
        y = conv2d(x, self.kernel[...].astype(x.dtype), self.pad)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class BatchNorm(nnx.Module):
    """Batch norm with the unbiased running variance, as in PyTorch; ``nnx.BatchNorm`` has the biased one."""

    def __init__(self, channels: int, epsilon: float, momentum: float, devices: Devices):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = nnx.BatchStat(jnp.zeros(channels))
        self.var = nnx.BatchStat(jnp.ones(channels))
        self.epsilon, self.momentum, self.devices = epsilon, momentum, devices
        self.use_running_average = False  # set by the module's train() and eval()

    def __call__(self, x: Array) -> Array:
        """(N, H, W, channels), normalised over all but the last axis; statistics at least in float32."""
        scale, bias = self.scale[...], self.bias[...]
        if self.use_running_average:
            y = (x - self.mean[...]) * (lax.rsqrt(self.var[...] + self.epsilon) * scale) + bias
            return y.astype(x.dtype)
        y, mean, variance = batch_norm(x, scale, bias, self.epsilon, self.devices)  # pyright: ignore[reportGeneralTypeIssues]
        count = self.devices.count * x.size // x.shape[-1]
        unbiased = variance * (count / (count - 1))
        self.mean[...] = lax.stop_gradient((1 - self.momentum) * self.mean[...] + self.momentum * mean)
        self.var[...] = lax.stop_gradient((1 - self.momentum) * self.var[...] + self.momentum * unbiased)
        return y


def number_elements(shape: Shape) -> Array:
    """The number of each element within its image (C, H, W): int32 (1, H, W, C)."""
    return jnp.arange(prod(shape), dtype=jnp.int32).reshape(1, *shape).transpose(0, 2, 3, 1)


def drop(x: Array, rate: float, key: Array, element: Array, first: Array | int) -> Array:
    """Dropout of (N, H, W, C) by the hash of `recipe.random_numbers.keep_mask`.

    The key is int32 (2,); ``element`` is from `number_elements`; ``first`` is the number of the first image.
    """
    images = jnp.arange(len(x), dtype=jnp.int32) + first
    keep = compute_once(lambda image: keep_mask(image * element.size + element[0], key, rate), images)
    return jnp.where(keep, x * (1 / (1 - rate)), 0)


# Canonical (PyTorch's) tensor names to Flax's.
_FLAX_NAMES = {
    ("conv", "weight"): "kernel",
    ("conv", "bias"): "bias",
    ("norm", "weight"): "scale",
    ("norm", "bias"): "bias",
    ("norm", "running_mean"): "mean",
    ("norm", "running_var"): "var",
}


def find_variable(model: ConvNet, name: str) -> Any:
    """The Flax variable of a canonical name: of conv1.weight, ``model.conv1.kernel``."""
    layer, tensor = name.split(".")
    return getattr(getattr(model, layer), _FLAX_NAMES[layer[:4], tensor])


def load_tensors(model: ConvNet, tensors: Tensors, prefix: str = "") -> None:
    """Set those parameters and running statistics that are among the canonical tensors."""
    for name in (*model.network.parameters, *model.network.buffers):
        if prefix + name in tensors:
            value = tensors[prefix + name]
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
            find_variable(model, name).set_value(jnp.asarray(value))


def dump_tensors(model: ConvNet, prefix: str = "") -> Tensors:
    """Parameters and running statistics as canonical tensors."""
    tensors = {}
    for name in (*model.network.parameters, *model.network.buffers):
        value = np.asarray(find_variable(model, name).get_value())
        tensors[prefix + name] = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
    return tensors


def load_model(path: Path | str) -> ConvNet:
    """A trained network in evaluation mode, float32; averaged weights if the run has them.

    Its input is (x / 255 - `recipe.data.MEAN`) / `recipe.data.STD`, (N, 28, 28, 1).

    Args:
        path: a run's folder or its checkpoint, of either framework.

    Raises:
        UserError: it is missing or damaged.
    """
    checkpoint = load_checkpoint(find_checkpoint(Path(path)))
    model = ConvNet(checkpoint.network, 0.0, select_devices("cpu"))
    load_tensors(model, {name: tensor.astype("float32") for name, tensor in checkpoint.model.items()})
    model.eval()
    return model
