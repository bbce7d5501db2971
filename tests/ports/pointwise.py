"""1x1 convolutions in PyTorch, linear layers in the port."""

import numpy as np
import torch
from flax import nnx
from torch import nn

FAULT = False


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.fc1, self.fc2 = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(self.patch(x))))


class Port(nnx.Module):
    def __init__(self, rngs):
        self.patch = nnx.Conv(3, 8, (2, 2), strides=2, padding="VALID", rngs=rngs)
        self.fc1, self.fc2 = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        x = self.fc1(self.patch(x))
        return self.fc2(nnx.gelu(x) if FAULT else nnx.relu(x))


def reference():
    return Reference()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.standard_normal((2, 3, 8, 8)).astype(np.float32)
