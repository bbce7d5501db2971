"""The networks in Flax NNX, built from their layer tables. Images are NHWC."""

from collections.abc import Iterable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from jax_impl.ops import batch_norm, conv2d, conv2d_by_products, max_pool
from recipe.chance import keep_mask
from recipe.checkpoint import Tensors
from recipe.networks import Average, Conv, Dropout, Layer, MaxPool, Network, Norm, Relu

BN_MOMENTUM, BN_EPSILON = 0.1, 1e-5  # as PyTorch means them: the new statistics weigh a tenth


class ConvNet(nnx.Module):
    """A network of `recipe.networks`; its modules bear the table's layer names.

    Args:
        network: the layers.
        dropout: probability of dropping.
        products: compute convolutions by `conv2d_by_products`.
    """

    def __init__(self, network: Network, dropout: float, products: bool = False):
        self.network = network
        self.dropout = dropout
        for layer in network.layers:
            if (module := build_layer(layer, products)) is not None:
                setattr(self, layer.name, module)

    def __call__(self, x: Array, keys: Array | None = None, train: bool = False) -> Array:
        """Logits.

        Args:
            x: normalised images (N, 28, 28, 1), in the type to compute in.
            keys: int32 (dropout layers, 2), see `recipe.chance.epoch_dropout_keys`; None: no dropout.
            train: normalise by the batch's statistics and update the running ones.

        Returns:
            (N, 10), at least float32.
        """
        dropouts = 0
        for layer in self.network.layers:
            operation = layer.operation
            if isinstance(operation, Conv):
                x = getattr(self, layer.name)(x)
            elif isinstance(operation, Norm):
                x = getattr(self, layer.name)(x, train)
            elif isinstance(operation, Relu):
                x = nnx.relu(x)
            elif isinstance(operation, MaxPool):
                x = max_pool(x)
            elif isinstance(operation, Average):
                x = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2), keepdims=True)
            elif isinstance(operation, Dropout):
                if keys is not None and self.dropout:
                    x = drop(x, self.dropout, keys[dropouts])
                dropouts += 1
        return x.reshape(x.shape[0], -1)


class Convolution(nnx.Module):
    """Convolution with explicit padding; ``nnx.Conv``'s parameters under the same names."""

    def __init__(self, channels: int, filters: int, kernel: int, pad: int, bias: bool, products: bool):
        self.kernel = nnx.Param(jnp.zeros((kernel, kernel, channels, filters)))
        self.bias = nnx.Param(jnp.zeros(filters)) if bias else None
        self.pad = pad
        self.products = products

    def __call__(self, x: Array) -> Array:
        """(N, H, W, channels) -> (N, H', W', filters), in x's type, which may be less precise."""
        convolve = conv2d_by_products if self.products else conv2d
        y = convolve(x, self.kernel[...].astype(x.dtype), self.pad)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class BatchNorm(nnx.Module):
    """Batch norm that keeps the unbiased running variance, as PyTorch does; ``nnx.BatchNorm`` the biased."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = nnx.BatchStat(jnp.zeros(channels))
        self.var = nnx.BatchStat(jnp.ones(channels))

    def __call__(self, x: Array, train: bool) -> Array:
        """(N, H, W, channels), normalised over all but the last axis; statistics at least in float32."""
        scale, bias = self.scale[...], self.bias[...]
        if not train:
            y = (x - self.mean[...]) * (lax.rsqrt(self.var[...] + BN_EPSILON) * scale) + bias
            return y.astype(x.dtype)
        y, mean, variance = batch_norm(x, scale, bias, BN_EPSILON)  # pyright: ignore[reportGeneralTypeIssues]
        count = x.size // x.shape[-1]
        unbiased = variance * (count / (count - 1))
        self.mean[...] = lax.stop_gradient((1 - BN_MOMENTUM) * self.mean[...] + BN_MOMENTUM * mean)
        self.var[...] = lax.stop_gradient((1 - BN_MOMENTUM) * self.var[...] + BN_MOMENTUM * unbiased)
        return y


def build_layer(layer: Layer, products: bool) -> nnx.Module | None:
    """The module that holds a layer's tensors; None for a layer without any."""
    channels = layer.in_shape[0]
    match layer.operation:
        case Conv(filters, kernel, pad, bias):
            return Convolution(channels, filters, kernel, pad, bias, products)
        case Norm():
            return BatchNorm(channels)
    return None


def drop(x: Array, rate: float, key: Array) -> Array:
    """Dropout of (N, H, W, C) by the hash of `recipe.chance.keep_mask`, which counts as (N, C, H, W)."""
    n, h, w, c = x.shape
    element = jnp.arange(x.size, dtype=jnp.int32).reshape(n, c, h, w).transpose(0, 2, 3, 1)
    return jnp.where(keep_mask(element, key, rate), x * (1 / (1 - rate)), 0)


# Canonical (PyTorch's) tensor names to Flax's.
_FLAX_NAMES = {
    ("conv", "weight"): "kernel",
    ("conv", "bias"): "bias",
    ("norm", "weight"): "scale",
    ("norm", "bias"): "bias",
    ("norm", "running_mean"): "mean",
    ("norm", "running_var"): "var",
}


def flax_path(name: str) -> tuple[str, str]:
    """Where Flax keeps the tensor of a canonical name: conv1.weight -> ("conv1", "kernel")."""
    layer, tensor = name.split(".")
    return layer, _FLAX_NAMES[layer[:4], tensor]


def load_tensors(state: nnx.State, tensors: Tensors, names: Iterable[str], prefix: str = "") -> nnx.State:
    """A copy of a Flax state with the named canonical tensors in it."""
    state = jax.tree.map(lambda leaf: leaf, state)
    for name in names:
        layer, tensor = flax_path(name)
        value, variable = tensors[prefix + name], cast(Any, state[layer][tensor])
        variable.set_value(jnp.asarray(value.transpose(2, 3, 1, 0) if value.ndim == 4 else value))
    return state


def dump_tensors(state: nnx.State, names: Iterable[str], prefix: str = "") -> Tensors:
    """The named tensors of a Flax state as canonical tensors."""
    tensors = {}
    for name in names:
        layer, tensor = flax_path(name)
        value = np.asarray(cast(Any, state[layer][tensor]).get_value())
        tensors[prefix + name] = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
    return tensors
