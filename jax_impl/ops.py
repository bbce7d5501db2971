"""Convolution, max pooling and batch norm for images in NHWC."""

import jax.numpy as jnp
from jax import Array, lax


def conv2d(x: Array, kernel: Array, pad: int) -> Array:
    """Convolution with stride 1: x (N, H, W, I), kernel HWIO."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), [(pad, pad), (pad, pad)], dimension_numbers=dimensions)


def max_pool(x: Array) -> Array:
    """2x2 maximum with stride 2; a tie's gradient goes to the first in scan order, as in PyTorch."""
    n, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c)
    first, *others = (x[:, :, i, :, j] for i in (0, 1) for j in (0, 1))
    for other in others:
        first = jnp.where(first >= other, first, other)
    return first


def batch_norm(x: Array, weight: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array]:
    """Normalise by the batch's own statistics; returns them as well, the variance biased."""
    mean = x.mean((0, 1, 2))
    variance = jnp.square(x - mean).mean((0, 1, 2))
    return (x - mean) * (lax.rsqrt(variance + epsilon) * weight) + bias, mean, variance
