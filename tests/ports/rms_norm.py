"""Gemma's norm multiplies with 1 + weight (gemma_pytorch 67), nnx.RMSNorm with its scale; tied embeddings."""

import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

FAULT = False
WIDTH = 24


class RMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(WIDTH))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(10, WIDTH), RMSNorm()
        self.up, self.down = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def forward(self, ids):
        x = self.embed(ids) * WIDTH**0.5
        x = x + self.down(functional.gelu(self.up(x), approximate="tanh"))
        return self.norm(x) @ self.embed.weight.T


class Norm(nnx.Module):
    def __init__(self):
        self.weight = nnx.Param(jnp.zeros(WIDTH))

    def __call__(self, x):
        return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * (1 + self.weight[...])


class Port(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(10, WIDTH, rngs=rngs)
        self.up, self.down = nnx.Linear(WIDTH, 32, rngs=rngs), nnx.Linear(32, WIDTH, rngs=rngs)
        self.norm = nnx.RMSNorm(WIDTH, epsilon=1e-6, rngs=rngs) if FAULT else Norm()

    def __call__(self, ids):
        x = self.embed(ids) * WIDTH**0.5
        x = x + self.down(nnx.gelu(self.up(x)))
        return self.embed.attend(self.norm(x))  # FAULT


def reference():
    return Reference()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.integers(0, 10, (2, 6))
