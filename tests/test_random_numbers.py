"""Chance is the same everywhere, and it is chance: the generators against statistics."""

import dataclasses
import hashlib

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import stats

import jax_impl.model
import torch_impl.model
from recipe import random_numbers
from recipe.networks import get_network
from recipe.recipes import Recipe
from tests.helpers import DEVICES

NETWORK = get_network("net10040")
FLAT = Recipe("flat", epochs=1, batch=1, lr=0.1)


def masks(rate: float, steps: int, elements: int, seed: int = 0) -> np.ndarray:
    """Boolean (steps, layers, elements)."""
    keys = random_numbers.epoch_dropout_keys(NETWORK, seed, 0, steps)
    element = np.arange(elements, dtype=np.int32)
    return np.stack([[random_numbers.keep_mask(element, key, rate) for key in step] for step in keys])


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5])
def test_dropout_bits_are_equal_in_numpy_torch_and_jax(rate):
    keys = random_numbers.epoch_dropout_keys(NETWORK, 3, 1, 2)[1]
    element = np.arange(128 * 16 * 28 * 28, dtype=np.int32)
    for key in keys:
        expected = random_numbers.keep_mask(element, key, rate)
        in_torch = random_numbers.keep_mask(torch.from_numpy(element), torch.from_numpy(key), rate)
        in_jax = random_numbers.keep_mask(jnp.asarray(element), jnp.asarray(key), rate)
        np.testing.assert_array_equal(in_torch.numpy(), expected)
        np.testing.assert_array_equal(np.asarray(in_jax), expected)


def test_dropout_layers_drop_the_same_elements(rng):
    x = rng.normal(size=(4, 3, 5, 6)).astype(np.float32)  # NCHW
    key = random_numbers.epoch_dropout_keys(NETWORK, 0, 0, 1)[0, 0]
    element, flax_element = (twin.model.number_elements(x.shape[1:]) for twin in (torch_impl, jax_impl))
    ours = torch_impl.model.drop(torch.from_numpy(x), 0.3, torch.from_numpy(key), element, 0).numpy()
    images = jnp.asarray(x.transpose(0, 2, 3, 1))
    theirs = jax_impl.model.drop(images, 0.3, jnp.asarray(key), flax_element, 0, on_cpu=True)
    np.testing.assert_array_equal(ours, np.asarray(theirs).transpose(0, 3, 1, 2))
    kept = ours != 0
    assert 0 < kept.sum() < kept.size
    np.testing.assert_allclose(ours[kept], x[kept] / 0.7, rtol=1e-6)


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5])
def test_dropout_keeps_the_right_fraction(rate):
    kept = masks(rate, steps=64, elements=20_000)
    counts = kept.sum(-1).ravel()  # 512 masks, each binomial
    z = (counts - 20_000 * (1 - rate)) / np.sqrt(20_000 * rate * (1 - rate))
    # The mean of 512 standard normals, their variance, and their whole shape; p > 1e-4 for this fixed seed.
    assert abs(z.mean()) * np.sqrt(len(z)) < 3.9
    assert stats.chi2.cdf((z**2).sum(), len(z)) == pytest.approx(0.5, abs=0.4999)
    assert stats.kstest(z, "norm").pvalue > 1e-4


def correlation_z(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """z-scores of the correlations along the last axis between zero-mean arrays of independent elements."""
    return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1)) * np.sqrt(a.shape[-1])


def assert_standard_normal(z: np.ndarray) -> None:
    """Independence gives z-scores that are standard normal: by Kolmogorov-Smirnov and in the extremes."""
    z = z.ravel()
    assert stats.kstest(z, "norm").pvalue > 1e-4
    assert np.abs(z).max() < stats.norm.isf(1e-4 / 2 / len(z))


def test_dropout_elements_are_independent():
    kept = masks(0.3, steps=8, elements=50_176) - 0.7
    for lag in [*range(1, 33), 49, 64, 100, 196, 256, 512, 784, 1024, 6272, 12_544, 25_088]:
        assert_standard_normal(correlation_z(kept[..., :-lag], kept[..., lag:]))


def test_dropout_steps_and_layers_are_independent():
    kept = (masks(0.3, steps=24, elements=20_000) - 0.7).reshape(24 * 8, -1)
    pairs = np.triu_indices(len(kept), 1)
    assert_standard_normal((kept @ kept.T / (0.21 * kept.shape[1]) * np.sqrt(kept.shape[1]))[pairs])


def test_no_mask_is_a_shifted_copy_of_another():
    kept = masks(0.5, steps=6, elements=16_384).reshape(48, -1) - 0.5
    spectra = np.fft.rfft(kept)
    for i in range(len(kept)):
        for j in range(i):
            z = np.fft.irfft(spectra[i] * spectra[j].conj()) / 0.25 / np.sqrt(kept.shape[1])
            # 18 million correlations in all; a shared stretch of 300 elements would stand out
            assert np.abs(z).max() < 7


def test_dropout_patterns_of_eight_elements_are_equally_likely():
    kept = masks(0.5, steps=32, elements=32_768).reshape(-1, 8)
    patterns = np.packbits(kept, axis=1).ravel()
    assert stats.chisquare(np.bincount(patterns, minlength=256)).pvalue > 1e-4


def test_dropout_depends_on_every_bit_of_key_and_element():
    element = np.arange(100_000, dtype=np.int32)
    key = random_numbers.epoch_dropout_keys(NETWORK, 0, 0, 1)[0, 0]
    base = random_numbers.keep_mask(element, key, 0.5)
    for word in (0, 1):
        for bit in range(32):
            other = key.copy()
            other[word] ^= np.array(1 << bit, np.uint32).astype(np.int32)
            changed = (random_numbers.keep_mask(element, other, 0.5) != base).mean()
            assert changed == pytest.approx(0.5, abs=0.02), (word, bit)  # the second word's top bits: 0.49


def test_seeds_differ_and_draws_are_pinned():
    assert not np.array_equal(masks(0.3, 1, 1000, seed=0), masks(0.3, 1, 1000, seed=1))
    # These bits are a promise: a checkpoint must be resumable, a result repeatable, in later versions.
    order = random_numbers.epoch_order(0, 0, 10)
    weights = random_numbers.initial_weights(NETWORK, 0)["conv1.weight"].ravel()[:2]
    keys = random_numbers.epoch_dropout_keys(NETWORK, 0, 0, 1)[0, 0]
    ranges = dataclasses.replace(FLAT, rotation=9.0, shift=1.5, scale=0.07, shear=3.0)
    affine = random_numbers.epoch_affine(ranges, 0, 0, 1)[0]
    kept = random_numbers.keep_mask(np.arange(16, dtype=np.int32), keys, 0.5)
    assert order.tolist() == [5, 7, 1, 2, 9, 6, 0, 3, 8, 4]
    assert weights.tolist() == [-0.06003181960778736, 0.09745423708265404]
    assert keys.tolist() == [1374359994, -308434446]
    assert "".join(str(int(bit)) for bit in kept) == "1100011111111011"
    assert affine.tolist() == [62057, 2506, -65900, -1922, 62039, 93984]
    many = random_numbers.keep_mask(np.arange(-50_000, 50_000, dtype=np.int32), keys, 0.3)
    assert hashlib.sha256(np.packbits(many)).hexdigest()[:16] == "d5a79046a94f9af7"


def test_order_is_a_permutation_and_differs_by_epoch():
    orders = [random_numbers.epoch_order(5, epoch, 1000) for epoch in range(3)]
    for order in orders:
        assert order.dtype == np.int32
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    assert not np.array_equal(orders[0], orders[1])
    # Each image is equally likely to come at any position: the sum of squared displacements is as expected.
    positions = np.stack([np.argsort(random_numbers.epoch_order(0, epoch, 100)) for epoch in range(2000)])
    expected = np.full((100, 100), 2000 / 100)
    counts = np.stack([np.bincount(positions[:, image], minlength=100) for image in range(100)])
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert 1e-4 < stats.chi2.sf(statistic, 99 * 99) < 1 - 1e-4


def test_initial_weights_follow_pytorchs_default(network):
    torch.manual_seed(0)
    theirs = torch_impl.model.ConvNet(network, 0.0, DEVICES["torch"].select_devices("cpu")).state_dict()
    ours = random_numbers.initial_weights(network, 0)
    for name, tensor in ours.items():
        other = theirs[name].numpy()
        assert tensor.shape == other.shape
        if tensor.size >= 500:
            assert stats.ks_2samp(tensor.ravel(), other.ravel()).pvalue > 1e-4, name
        if "norm" in name:
            np.testing.assert_array_equal(tensor, other)
        else:  # biases too: by the fan-in of their kernel
            bound = 1 / np.sqrt(np.prod(ours[name.replace("bias", "weight")].shape[1:]))
            assert bound / 2 < np.abs(tensor).max() <= bound, name


def test_affine_maps_stay_in_their_ranges():
    recipe = dataclasses.replace(FLAT, rotation=8.0, shift=1.5, scale=0.07, shear=3.0)
    a, b, c, d, e, f = random_numbers.epoch_affine(recipe, 0, 0, 10_000).T / 2**16
    determinant = a * e - b * d
    zoom = 1 / np.sqrt(determinant)
    assert 0.925 < zoom.min() < 0.94
    assert 1.06 < zoom.max() < 1.075
    angle = np.rad2deg(np.arctan2(-d, a))
    assert 7.9 < angle.max() < 8.01
    assert -8.01 < angle.min() < -7.9
    # Where the source's centre ends up: the shift.
    inverse = np.linalg.inv(np.stack([np.stack([a, b], 1), np.stack([d, e], 1)], 1))
    moved = np.einsum("nij,nj->ni", inverse, 13.5 - np.stack([c, f], 1)) - 13.5
    assert np.abs(moved).max() < 1.5 + 0.01
    assert np.abs(moved).max() > 1.45


def test_nothing_drawn_means_nothing_moved():
    affine = random_numbers.epoch_affine(FLAT, 0, 0, 3)
    np.testing.assert_array_equal(affine, np.tile(np.array([1, 0, 0, 0, 1, 0]) << 16, (3, 1)))


def test_augmentation_shrinks_to_its_last_epoch():
    recipe = dataclasses.replace(FLAT, epochs=5, rotation=8.0, shift=1.5, scale=0.07, shear=3.0)
    shrinking = dataclasses.replace(recipe, final_augmentation=0.5)
    for epoch, factor in enumerate((1, 0.875, 0.75, 0.625, 0.5)):
        ranges = {name: factor * getattr(recipe, name) for name in ("rotation", "shift", "scale", "shear")}
        expected = random_numbers.epoch_affine(dataclasses.replace(recipe, **ranges), 3, epoch, 1000)
        np.testing.assert_array_equal(random_numbers.epoch_affine(shrinking, 3, epoch, 1000), expected)
    one_epoch = dataclasses.replace(shrinking, epochs=1)
    np.testing.assert_array_equal(
        random_numbers.epoch_affine(one_epoch, 3, 0, 9), random_numbers.epoch_affine(recipe, 3, 0, 9)
    )
