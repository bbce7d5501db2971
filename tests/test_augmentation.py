"""The integer warp: the same bits in three libraries, and an honest bilinear warp."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from scipy import ndimage

from recipe import random_numbers
from recipe.augmentation import SIDE, UNIT, crop, pad, warp
from recipe.recipes import Recipe

RECIPE = Recipe("wide", epochs=1, batch=1, lr=0.1, rotation=20.0, shift=4.0, scale=0.2, shear=10.0)
SIDE_RANGE = np.arange(SIDE, dtype=np.int32)


def in_numpy(images, affine, indices):
    return warp(pad(images), affine, indices[:, None, None], SIDE_RANGE[:, None], SIDE_RANGE)


def test_three_libraries_give_the_same_bits(rng):
    images = rng.integers(0, 256, (50, 28, 28), np.uint8)
    affine, indices = random_numbers.epoch_affine(RECIPE, 0, 0, 200), rng.integers(0, 50, 200, np.int32)
    expected = in_numpy(images, affine, indices)
    assert expected.dtype == np.int32
    arguments = (pad(images), affine, indices[:, None, None], SIDE_RANGE[:, None], SIDE_RANGE)
    np.testing.assert_array_equal(warp(*map(torch.from_numpy, arguments)).numpy(), expected)
    np.testing.assert_array_equal(np.asarray(jax.jit(warp)(*map(jnp.asarray, arguments))), expected)


def test_it_is_a_bilinear_warp(digits):
    images = digits.train_images[:100]
    affine = random_numbers.epoch_affine(RECIPE, 0, 0, 100)
    ours = in_numpy(images, affine, np.arange(100, dtype=np.int32)) / UNIT
    for image, row, ours_one in zip(images, affine / 2**16, ours, strict=True):
        a, b, c, d, e, f = row
        matrix, offset = np.array([[e, d], [b, a]]), np.array([f, c])  # scipy counts (row, column)
        theirs = ndimage.affine_transform(image / 255, matrix, offset, order=1, mode="grid-constant")
        # Coordinates are cut to 1/256 pixel, so a step of 255 grey levels may differ by 2/256 (both axes).
        np.testing.assert_allclose(ours_one, theirs, atol=2 / 256)


def test_no_movement_is_exact(rng):
    images = rng.integers(0, 256, (7, 28, 28), np.uint8)
    affine = np.tile(np.array([1, 0, 0, 0, 1, 0], np.int32) << 16, (7, 1))
    np.testing.assert_array_equal(
        in_numpy(images, affine, np.arange(7, dtype=np.int32)), images.astype(int) << 16
    )


def test_far_away_is_black(rng):
    images = rng.integers(1, 256, (1, 28, 28), np.uint8)
    for shift in (-40, 40):
        affine = np.array([[1 << 16, 0, shift << 16, 0, 1 << 16, 0]], np.int32)
        assert not in_numpy(images, affine, np.zeros(1, np.int32)).any()


def test_crop_undoes_pad(rng):
    images = rng.integers(0, 256, (3, 28, 28), np.uint8)
    np.testing.assert_array_equal(crop(pad(images)), images)
