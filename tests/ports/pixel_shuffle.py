"""PixelShuffle orders channels (c, block), depth_to_space (block, c) (tensorflow 53291, onnx 2163)."""

import numpy as np
from flax import nnx
from torch import nn

FAULT = False


class Port(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(3, 8, (3, 3), padding=1, rngs=rngs)
        self.last = nnx.Conv(2, 3, (3, 3), padding=1, rngs=rngs)

    def __call__(self, x):
        x = self.first(x)
        n, h, w, c = x.shape
        if FAULT:
            x = x.reshape(n, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)  # FAULT
        else:
            x = x.reshape(n, h, w, c // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3)
        return self.last(x.reshape(n, 2 * h, 2 * w, c // 4))  # FAULT


def reference():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(2, 3, 3, padding=1))


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.standard_normal((2, 3, 5, 5)).astype(np.float32)
