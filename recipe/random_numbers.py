"""Every random number of a run, drawn once, so that both frameworks use the same ones.

Draws made on the host come from NumPy's Philox, a counter-based generator, keyed by the seed, the purpose and
the epoch. Only its raw 64-bit words are used: NumPy promises that they never change, and does not promise
that for the methods of ``Generator``. Dropout masks are too large to be made on the host: both frameworks
compute them on the device with `keep_mask`, which uses only operators that NumPy, PyTorch and JAX share.
"""

from enum import IntEnum
from math import prod
from typing import Any

import numpy as np

from recipe.networks import Network
from recipe.recipes import Recipe, augmentation_strength

Array = Any  # of NumPy, PyTorch or JAX


class _Purpose(IntEnum):
    WEIGHTS = 1
    ORDER = 2
    WARP = 3
    DROPOUT = 4


def _raw(seed: int, purpose: _Purpose, index: int, count: int) -> np.ndarray:
    """``count`` uniformly random uint64."""
    key = np.array([seed, (purpose << 32) | index], np.uint64)
    return np.random.Philox(key=key).random_raw(count)


def _uniform(seed: int, purpose: _Purpose, index: int, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform float64 in [-1, 1), with all 53 bits."""
    unit = (_raw(seed, purpose, index, prod(shape)) >> np.uint64(11)) * 2.0**-53
    return (2 * unit - 1).reshape(shape)


def initial_weights(network: Network, seed: int) -> dict[str, np.ndarray]:
    """Initial parameters and buffers by canonical name, float64, kernels OIHW.

    Kernels and biases of convolutions are U(-1/sqrt(fan_in), 1/sqrt(fan_in)), which is what PyTorch's
    ``Conv2d`` does by default; batch norm starts as the identity.
    """
    tensors: dict[str, np.ndarray] = {}
    for index, (name, shape) in enumerate(network.parameters.items()):
        if name.startswith("norm"):
            tensors[name] = np.full(shape, 1.0 if name.endswith("weight") else 0.0)
        else:
            fan_in = prod(network.parameters[name.replace("bias", "weight")][1:])
            tensors[name] = _uniform(seed, _Purpose.WEIGHTS, index, shape) / np.sqrt(fan_in)
    for name, shape in network.buffers.items():
        tensors[name] = np.full(shape, 1.0 if name.endswith("var") else 0.0)
    return tensors


def epoch_order(seed: int, epoch: int, images: int) -> np.ndarray:
    """A random permutation of the training images for one epoch: int32, shape (images,)."""
    return np.argsort(_raw(seed, _Purpose.ORDER, epoch, images), kind="stable").astype(np.int32)


def epoch_affine(recipe: Recipe, seed: int, epoch: int, images: int) -> np.ndarray:
    """The affine map of each image of one epoch, from target to source pixels: int32, shape (images, 6).

    A row (a, b, c, d, e, f), in units of 2**-16, says that target pixel (x, y) shows the source at
    (a x + b y + c, d x + e y + f). Rotation, scale and shear are about the image's centre.
    """
    draws = _uniform(seed, _Purpose.WARP, epoch, (5, images))
    strength = augmentation_strength(recipe, epoch)
    angle = np.deg2rad(strength * recipe.rotation) * draws[0]
    shear = np.tan(np.deg2rad(strength * recipe.shear) * draws[1])
    zoom = 1 / (1 + strength * recipe.scale * draws[2])
    shift_x, shift_y = strength * recipe.shift * draws[3:]
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    a, b, d, e = cos, sin + shear * cos, -sin, cos - shear * sin
    centre = 13.5
    c = centre - a * (centre + shift_x) - b * (centre + shift_y)
    f = centre - d * (centre + shift_x) - e * (centre + shift_y)
    return np.rint(np.stack([a, b, c, d, e, f], axis=1) * 2**16).astype(np.int32)


def epoch_dropout_keys(network: Network, seed: int, epoch: int, steps: int) -> np.ndarray:
    """Two random words for each step and dropout layer of one epoch: int32, shape (steps, layers, 2)."""
    layers = len(network.dropouts)
    words = _raw(seed, _Purpose.DROPOUT, epoch, steps * layers)
    return words.astype("<u8").view("<i4").astype(np.int32).reshape(steps, layers, 2)


def keep_mask(element: Array, key: Array, rate: float) -> Array:
    """Which elements dropout keeps: a boolean array, true with probability 1 - rate.

    This is a 32-bit finalizer, C. Wellons' triple32 (https://nullprogram.com/blog/2018/07/31/). It mixes one
    word of the key (seed, step and layer, see `epoch_dropout_keys`) in before its first round and the other
    before its second. With one word only, two masks could be shifted copies of each other. Products wrap.

    Args:
        element: number of each element within its (N, C, H, W) array, int32.
        key: two int32.
        rate: probability of dropping, rounded to a multiple of 2**-32.
    """
    h = element ^ key[0]
    h = (h ^ _shift(h, 17)) * (0xED5AD4BB - 2**32)  # int32, since PyTorch has little arithmetic for uint32
    h = h ^ key[1]
    h = (h ^ _shift(h, 11)) * (0xAC4C1B51 - 2**32)
    h = (h ^ _shift(h, 15)) * 0x31848BAB
    h = h ^ _shift(h, 14)
    return h >= round(rate * 2**32) - 2**31


def _shift(h: Array, bits: int) -> Array:
    """Logical shift right of an int32, whose own shift would copy the sign."""
    return (h >> bits) & (2 ** (32 - bits) - 1)
