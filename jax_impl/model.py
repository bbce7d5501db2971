"""The networks in Flax NNX, built from their layer tables. Images are NHWC."""

from math import prod
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx, traverse_util
from jax import Array, lax

from jax_impl.devices import Devices, select_devices
from jax_impl.kernels import avg_pool, compute_once, conv2d, max_pool
from jax_impl.ops import batch_norm
from recipe.checkpoint import Tensors, find_checkpoint, load_checkpoint
from recipe.networks import Average, AvgPool, Conv, Dropout, Layer, MaxPool, Network, Norm, Relu, Shape
from recipe.random_numbers import keep_mask

State = dict[str, Array]  # arrays under the names of a checkpoint, such as conv1.weight


class ConvNet(nnx.Module):
    """A network of `recipe.networks`; its modules have the table's layer names.

    Args:
        network: the layers.
        dropout: probability of dropping.
        devices: that share a batch.
    """

    def __init__(self, network: Network, dropout: float, devices: Devices):
        super().__init__()
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
                    element = number_elements(layer.out_shape)
                    x = drop(x, self.dropout, dropout_keys[dropouts], element, first, self.devices.on_cpu)
                dropouts += 1
        return x.reshape(x.shape[0], -1)


def build_layer(layer: Layer, devices: Devices) -> nnx.Module | None:
    """The module that holds a layer's own tensors; None for a layer without any."""
    channels = layer.in_shape[0]
    match layer.operation:
        case Conv(filters, kernel, pad, bias, None, depthwise):
            return Convolution(1 if depthwise else channels, filters, kernel, pad, bias, devices)
        case Norm(epsilon, momentum):
            return BatchNorm(channels, epsilon, momentum, devices)
    return None


class Convolution(nnx.Module):
    """Convolution in the type of what it is given, which may be less precise than the weights.

    Its parameters are ``nn.Conv2d``'s, under the same names.
    """

    def __init__(self, channels: int, filters: int, kernel: int, pad: int, bias: bool, devices: Devices):
        super().__init__()
        self.weight = nnx.Param(jnp.zeros((filters, channels, kernel, kernel)))
        self.bias = nnx.Param(jnp.zeros(filters)) if bias else None
        self.pad, self.on_cpu = pad, devices.on_cpu

    def __call__(self, x: Array) -> Array:
        """(N, H, W, channels) -> (N, H', W', filters), in x's type."""
        bias = None if self.bias is None else self.bias[...].astype(x.dtype)
        return conv2d(x, self.weight[...].astype(x.dtype), bias, self.pad, self.on_cpu)


class BatchNorm(nnx.Module):
    """Batch norm over the images of all devices, with ``nn.BatchNorm2d``'s tensors under the same names."""

    def __init__(self, channels: int, epsilon: float, momentum: float, devices: Devices):
        super().__init__()
        self.weight = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.running_mean = nnx.BatchStat(jnp.zeros(channels))
        self.running_var = nnx.BatchStat(jnp.ones(channels))
        self.epsilon, self.momentum, self.devices = epsilon, momentum, devices
        self.use_running_average = False  # set by the module's train() and eval()

    def __call__(self, x: Array) -> Array:
        """(N, H, W, channels), normalised over all but the channels; statistics at least in float32."""
        weight, bias = self.weight[...], self.bias[...]
        mean, var = self.running_mean[...], self.running_var[...]
        if self.use_running_average:
            return ((x - mean) * (lax.rsqrt(var + self.epsilon) * weight) + bias).astype(x.dtype)
        y, batch_mean, batch_var = batch_norm(x, weight, bias, self.epsilon, self.devices)  # pyright: ignore[reportGeneralTypeIssues]
        count = self.devices.count * x.size // x.shape[-1]
        unbiased = batch_var * (count / (count - 1))
        self.running_mean[...] = lax.stop_gradient((1 - self.momentum) * mean + self.momentum * batch_mean)
        self.running_var[...] = lax.stop_gradient((1 - self.momentum) * var + self.momentum * unbiased)
        return y


def number_elements(shape: Shape) -> Array:
    """The number of each element within its image (C, H, W): int32 (1, H, W, C)."""
    return jnp.arange(prod(shape), dtype=jnp.int32).reshape(1, *shape).transpose(0, 2, 3, 1)


def drop(x: Array, rate: float, key: Array, element: Array, first: Array | int, on_cpu: bool) -> Array:
    """Dropout of (N, H, W, C) by the hash of `recipe.random_numbers.keep_mask`.

    The key is int32 (2,); ``element`` is from `number_elements`; ``first`` is the number of the first image.
    """
    image = jnp.arange(len(x), dtype=jnp.int32) + first
    keep = compute_once(lambda i: keep_mask(i * element.size + element[0], key, rate), image, on_cpu)
    return jnp.where(keep, x * (1 / (1 - rate)), 0)


def load_tensors(model: ConvNet, tensors: Tensors) -> None:
    """Set the parameters and running statistics."""
    nnx.update(model, traverse_util.unflatten_dict({k: jnp.asarray(v) for k, v in tensors.items()}, sep="."))


def with_tensors(model: ConvNet, tensors: State) -> ConvNet:
    """A copy of the model with these parameters and running statistics."""
    return nnx.merge(nnx.graphdef(model), traverse_util.unflatten_dict(tensors, sep="."))


def tensors_of(model: ConvNet, kind: type[nnx.Variable] = nnx.Variable) -> State:
    """The model's parameters and running statistics, or those of one kind, by name."""
    flat: Any = traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(model, kind)), sep=".")
    return flat


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
