"""Three independent faults in one model: an activation, a residual's factor and an epsilon."""

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn

FAULT = False


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.fc[0](x))
        x = torch.tanh(self.fc[1](x))
        x = x + self.fc[2](x) * 0.5
        x = torch.tanh(self.fc[3](x))
        return self.head(self.norm(x))


class Port(nnx.Module):
    def __init__(self, rngs):
        self.fc = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(4)])
        self.norm = nnx.LayerNorm(8, epsilon=1e-3 if FAULT else 1e-5, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = (nnx.gelu if FAULT else nnx.relu)(self.fc[0](x))
        x = jnp.tanh(self.fc[1](x))
        x = x + self.fc[2](x) * (0.4 if FAULT else 0.5)
        x = jnp.tanh(self.fc[3](x))
        return self.head(self.norm(x))  # FAULT: the epsilon


def reference():
    return Reference()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.standard_normal((4, 8)).astype(np.float32)
