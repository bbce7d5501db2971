"""Diffusion's embedding of time (diffusers 1369, sd-scripts 1187), in the model's type or in float32."""

import math

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

FAULT = ""
FLOAT32 = False
WIDTH = 16


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(WIDTH, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, t):
        dtype = torch.float32 if FLOAT32 else self.fc1.weight.dtype
        frequencies = torch.exp(-math.log(10000) * torch.arange(WIDTH // 2, dtype=dtype) / (WIDTH // 2))
        angles = t[:, None].to(dtype) * frequencies[None]
        x = torch.cat([angles.cos(), angles.sin()], -1).to(self.fc1.weight.dtype)
        return self.fc3(functional.relu(self.fc2(functional.silu(self.fc1(x)))))


class Port(nnx.Module):
    def __init__(self, rngs):
        self.fc1, self.fc2 = nnx.Linear(WIDTH, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)
        self.fc3 = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, t):
        dtype = jnp.float32 if FLOAT32 else self.fc1.kernel.dtype
        steps = WIDTH // 2 - (FAULT == "half minus one")
        exponents = jnp.arange(WIDTH // 2, dtype=dtype) / steps  # FAULT: half minus one
        frequencies = jnp.exp(-math.log(10000) * exponents)
        angles = t[:, None].astype(dtype) * frequencies[None]
        halves = [jnp.cos(angles), jnp.sin(angles)]
        x = jnp.concatenate(halves[::-1] if FAULT == "swapped" else halves, -1)
        x = self.fc2(nnx.silu(self.fc1(x)))
        return self.fc3(nnx.gelu(x) if FAULT == "activation" else nnx.relu(x))


def reference():
    return Reference()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return np.array([3, 500, 999])
