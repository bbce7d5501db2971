"""PyTorch's weight norm has a norm for each output (flax 4138), the faulty port one for the whole kernel."""

import numpy as np
import torch
from flax import nnx
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

FAULT = False


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = weight_norm(nn.Linear(6, 8)), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


class Port(nnx.Module):
    def __init__(self, rngs):
        linear = nnx.Linear(6, 8, rngs=rngs)
        self.first = nnx.WeightNorm(linear, feature_axes=None if FAULT else -1, rngs=rngs)
        self.last = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.first(x)))  # FAULT


def reference():
    return Reference()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.standard_normal((4, 6)).astype(np.float32)
