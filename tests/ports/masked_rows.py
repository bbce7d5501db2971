"""Rows that are masked wholly: with -inf their softmax is nan (transformers 21150), with -1e9 it is not."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn

FAULT = False
WIDTH, HEADS = 8, 2
SIZE = WIDTH // HEADS


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x, keep):
        b, t, _ = x.shape
        q, k, v = (layer(x).view(b, t, HEADS, SIZE).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mask = keep[:, None, None, :] & torch.ones(t, t, dtype=torch.bool).tril()
        scores = (q @ k.transpose(-1, -2) / SIZE**0.5).masked_fill(~mask, -1e9)
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, WIDTH))


class Port(nnx.Module):
    def __init__(self, rngs):
        self.q, self.k, self.v, self.o = (nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(4))

    def __call__(self, x, keep):
        b, t, _ = x.shape
        q, k, v = (layer(x).reshape(b, t, HEADS, SIZE) for layer in (self.q, self.k, self.v))
        mask = keep[:, None, None, :] & jnp.tril(jnp.ones((t, t), bool))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / SIZE**0.5
        scores = jnp.where(mask, scores, -jnp.inf if FAULT else -1e9)
        y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)  # FAULT
        return self.o(y.reshape(b, t, WIDTH))


def reference():
    return Reference()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    keep = np.ones((2, 5), bool)
    keep[1, :2] = False  # padded on the left
    return rng.standard_normal((2, 5, WIDTH)).astype(np.float32), keep
