"""Batch normalisation over the images of all devices, as exact as it can be.

``nnx.BatchNorm`` knows only one device, and keeps the biased running variance.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_impl.devices import Devices


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_norm(
    x: Array, weight: Array, bias: Array, epsilon: float, devices: Devices
) -> tuple[Array, Array, Array]:
    """Normalise x (N, H, W, C) by its batch statistics; return y, mean (C,), biased variance (C,).

    The batch is that of all devices. x and y may be less precise than the weights, the statistics are not.
    Mean and variance are meant for running averages: no gradient flows back through them.
    """
    return _forward(x, weight, bias, epsilon, devices)[0]


def _forward(given: Array, weight: Array, bias: Array, epsilon: float, devices: Devices):
    x = given.astype(weight.dtype)
    pixels = devices.count * x.size // x.shape[-1]
    mean = devices.sum(_channel_sum(x)) / pixels  # first, because E[x^2] - E[x]^2 cancels
    var = devices.sum(_channel_sum(jnp.square(x - mean))) / pixels
    inv_std = lax.rsqrt(var + epsilon)
    y = (x - mean) * (inv_std * weight) + bias
    return (y.astype(given.dtype), mean, var), (given, mean, inv_std, weight)


def _backward(epsilon: float, devices: Devices, saved: Any, grads: Any):
    # Ioffe & Szegedy 2015, section 3, with the sums over the batch taken once.
    given, mean, inv_std, weight = saved
    x, dy = given.astype(weight.dtype) - mean, grads[0].astype(weight.dtype)
    pixels = devices.count * x.size // x.shape[-1]
    dbias, dweight = _channel_sum(dy), _channel_sum(dy * x) * inv_std
    mean_dy, mean_dy_x = devices.sum(jnp.stack([dbias, dweight])) / pixels
    dx = dy - mean_dy - x * (inv_std * mean_dy_x)
    return ((weight * inv_std) * dx).astype(given.dtype), dweight, dbias


batch_norm.defvjp(_forward, _backward)


def _channel_sum(x: Array) -> Array:
    """Sum over all axes but the channels: (N, H, W, C) -> (C,); each image first, which is more exact."""
    # XLA shares a reduction among cores by its outputs; without the barrier it would make one of the two.
    return lax.optimization_barrier(x.sum((1, 2))).sum(0)
