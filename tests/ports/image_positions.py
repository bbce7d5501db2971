"""A learned position (1, c, h, w), in the port (1, h, w, c)."""

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn

FAULT = False


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 5, 1)
        self.pos = nn.Parameter(torch.randn(1, 8, 4, 6))

    def forward(self, x):
        return self.head(self.patch(x) + self.pos)


class Port(nnx.Module):
    def __init__(self, rngs):
        self.patch = nnx.Conv(3, 8, (4, 4), strides=(4, 4), padding="VALID", rngs=rngs)
        self.pos, self.head = nnx.Param(jnp.zeros((1, 4, 6, 8))), nnx.Conv(8, 5, (1, 1), rngs=rngs)

    def __call__(self, x):
        x = self.patch(x)
        return self.head(x - self.pos[...] if FAULT else x + self.pos[...])


def reference():
    return Reference()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.standard_normal((2, 3, 16, 24)).astype(np.float32)
