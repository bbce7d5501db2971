"""A transposed convolution; Flax wants as padding (k - 1 - p, k - 1 - p + output padding)."""

import numpy as np
from flax import nnx
from torch import nn

FAULT = False


class Port(nnx.Module):
    def __init__(self, rngs):
        padding = "SAME" if FAULT else ((1, 2), (1, 2))
        self.up = nnx.ConvTranspose(
            4, 6, (3, 3), strides=(2, 2), padding=padding, transpose_kernel=True, rngs=rngs
        )
        self.out = nnx.Conv(6, 3, (1, 1), rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.up(x)))  # FAULT


def reference():
    up = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1)
    return nn.Sequential(up, nn.ReLU(), nn.Conv2d(6, 3, 1))


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.standard_normal((2, 4, 5, 5)).astype(np.float32)
