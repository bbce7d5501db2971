"""In train mode; the faulty port has no dropout."""

import numpy as np
from flax import nnx
from torch import nn

FAULT = False


class Port(nnx.Module):
    def __init__(self, rngs):
        self.fc1, self.fc2 = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.fc1(x))
        return self.fc2(x if FAULT else self.drop(x))


def reference():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.standard_normal((4, 6)).astype(np.float32)
