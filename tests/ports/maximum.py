"""The gradient of jnp.maximum(x, 0) at 0 is 0.5 (jax 37821); a layer that starts at zero is exactly there."""

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn

FAULT = False


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.zero, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        nn.init.zeros_(self.zero.weight)
        nn.init.zeros_(self.zero.bias)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last(x + torch.relu(self.zero(x)))


class Port(nnx.Module):
    def __init__(self, rngs):
        self.first, self.zero = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)
        self.last = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.first(x))
        y = self.zero(x)
        return self.last(x + (jnp.maximum(y, 0) if FAULT else nnx.relu(y)))


def reference():
    return Reference()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.standard_normal((4, 6)).astype(np.float32)
