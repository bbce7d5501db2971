"""The affine warp in integers, so that NumPy, PyTorch and JAX give the same bits.

Written in operators and indexing that the three libraries share; no other arithmetic is involved.
"""

from typing import Any

import numpy as np

Array = Any  # of NumPy, PyTorch or JAX

SIDE = 28
_LEFT, _RIGHT = 1, 2  # zero pixels around an image, so that every bilinear neighbour exists
UNIT = 255 * 2**16  # the value of a white pixel in the result of `warp`


def pad(images: np.ndarray) -> np.ndarray:
    """Put the zero border around images that `warp` reads: uint8 (N, 28, 28) -> (N, 31, 31)."""
    return np.pad(images, ((0, 0), (_LEFT, _RIGHT), (_LEFT, _RIGHT)))


def crop(padded: Array) -> Array:
    """Undo `pad`: (..., 31, 31) -> (..., 28, 28)."""
    return padded[..., _LEFT : _LEFT + SIDE, _LEFT : _LEFT + SIDE]


def warp(padded: Array, affine: Array, index: Array, row: Array, column: Array) -> Array:
    """Bilinear affine warp; what lies outside an image is black.

    Args:
        padded: images from `pad`, of an integer type whose product with an int32 is at least int32.
        affine: int32 (N, 6) in units of 2**-16, see `recipe.random_numbers.epoch_affine`.
        index: int32 (N, 1, 1), position of each source image in ``padded``.
        row: int32 (28, 1), the target rows 0..27.
        column: int32 (28,), the target columns 0..27.

    Returns:
        int32 (N, 28, 28), pixel values in units of 1 / 2**16: 0 to `UNIT`.
    """
    affine = affine[:, :, None, None]
    x = (affine[:, 0] * column + affine[:, 1] * row + affine[:, 2]).clip(-1 << 16, SIDE << 16)
    y = (affine[:, 3] * column + affine[:, 4] * row + affine[:, 5]).clip(-1 << 16, SIDE << 16)
    left, top = (x >> 16) + _LEFT, (y >> 16) + _LEFT
    across, down = (x >> 8) & 0xFF, (y >> 8) & 0xFF  # eight bits of the fraction weigh the neighbours
    upper = padded[index, top, left] * (256 - across) + padded[index, top, left + 1] * across
    lower = padded[index, top + 1, left] * (256 - across) + padded[index, top + 1, left + 1] * across
    return upper * (256 - down) + lower * down
