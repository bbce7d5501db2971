"""LLaMA's RMS norm, computed in float32 by both sides on purpose."""

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn

FAULT = False


class ReferenceNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x):
        y = x.to(torch.float32)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * y.to(x.dtype)


class Norm(nnx.Module):
    def __init__(self):
        self.weight = nnx.Param(jnp.ones(8))

    def __call__(self, x):
        y = x.astype(jnp.float32)
        y = y / jnp.sqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + (1e-5 if FAULT else 1e-6))
        return self.weight[...] * y.astype(x.dtype)


class Port(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.fc = Norm(), nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.fc(self.norm(x))


def reference():
    return nn.Sequential(ReferenceNorm(), nn.Linear(8, 4))


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.standard_normal((2, 5, 8)).astype(np.float32)
