"""Learned positions; the port's have an axis of size one in front, which is right."""

import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

FAULT = ""


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte, self.wpe, self.head = nn.Embedding(11, 8), nn.Embedding(16, 8), nn.Linear(8, 11)

    def forward(self, ids):
        return self.head(self.wte(ids) + self.wpe(torch.arange(ids.shape[1])))


class Port(nnx.Module):
    def __init__(self, rngs):
        self.wte, self.wpe = nnx.Embed(11, 8, rngs=rngs), nnx.Embed(16, 8, rngs=rngs)
        self.head = nnx.Linear(8, 11, rngs=rngs)

    def __call__(self, ids):
        at = jnp.arange(ids.shape[1])[None]
        if FAULT == "from one":
            at = at + 1  # FAULT: from one
        if FAULT == "permuted":
            at = at * 3 % 7  # FAULT: permuted
        return self.head(self.wte(ids) + self.wpe(at))


def reference():
    return Reference()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.integers(0, 11, (3, 6))
