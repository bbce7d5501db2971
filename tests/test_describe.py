"""The table of computations knows PyTorch's own by their numbers, and tells apart those that are mistaken."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from lockstep.describe import describe, describe_indices, describe_loss

X = np.random.default_rng(0).standard_normal((2, 4, 6, 6))
T = torch.from_numpy(X)


def resized(mode, **options):
    return functional.interpolate(T, size=(9, 12), mode=mode, **options)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (functional.pad(T, (1, 1, 2, 2), "reflect"), "reflection"),
        (functional.pad(T, (1, 1, 2, 2), "circular"), "circular"),
        (functional.pad(T, (1, 1, 2, 2), "replicate"), "edge"),
        (functional.pad(T, (1, 1, 2, 2)), "zeros"),
        (resized("bilinear", align_corners=True), "linear, align_corners=True"),
        (resized("bilinear", align_corners=False), "linear, align_corners=False"),
        (resized("bicubic", align_corners=False), "cubic with the constant -0.75"),
        (resized("nearest"), "nearest"),
        (functional.avg_pool2d(T, 3, 2, 1), "padded places counted"),
        (functional.avg_pool2d(T, 3, 2, 1, count_include_pad=False), "padded places not counted"),
        (functional.max_pool2d(T, 2), "maximum of windows of 2"),
        (functional.group_norm(T, 2), "2 groups of axis 1"),
        (functional.layer_norm(T, (6,)), r"a normalisation over axes (3,)"),
        (T.softmax(1), "softmax over axes (1,)"),
        (functional.gelu(T), "GELU with erf"),
        (functional.gelu(T, approximate="tanh"), "GELU with tanh"),
        (T.var(2), "the variance by n - 1 over axes (2,)"),
        (T.amax((2, 3)), "the maximum over axes (2, 3)"),
    ],
)
def test_a_computation_is_known_by_its_numbers(value, words):
    assert words in describe(X, value.numpy(), (0, 1, 2, 3))


def test_what_is_not_in_the_table_has_no_name():
    assert not describe(X, np.sin(X) + X, (0, 1, 2, 3))


@pytest.mark.parametrize(("interleaved", "words"), [(False, "halves"), (True, "interleaved")])
def test_rotary_positions_are_of_halves_or_interleaved(interleaved, words):
    angles = np.arange(6)[:, None] / 100.0 ** (np.arange(3) / 3)
    a, b = (X[..., ::2], X[..., 1::2]) if interleaved else (X[..., :3], X[..., 3:])
    parts = [a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)]
    y = np.stack(parts, -1).reshape(X.shape) if interleaved else np.concatenate(parts, -1)
    assert words in describe(X, y, (0, 1, 2, 3))


def test_positions_are_known():
    assert describe_indices(np.arange(3, 9)[None], []) == "positions from 3"
    ids = np.array([[5, 6, 1, 1], [4, 1, 1, 1]])
    keep = (ids != 1).astype(int)
    assert "no padding" in describe_indices(np.cumsum(keep, 1) * keep + 1, [ids])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_loss_is_known_with_its_denominator(smoothing):
    x, labels = T[:, :, 0], torch.tensor([[0, 1, 2, 3, -100, 1], [2, 2, -100, -100, 0, 3]])
    loss = functional.cross_entropy(x, labels, label_smoothing=smoothing)
    found = describe_loss(loss.item(), x.numpy(), labels.numpy(), [smoothing])
    assert "the mean over 9" in found and ("smoothing" in found) == bool(smoothing)
