"""T5's relative positions in buckets, which are bidirectional in the encoder (mlx-examples 113)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn

FAULT = False
WIDTH, HEADS = 8, 2
SIZE = WIDTH // HEADS


def bucket(n, bidirectional, buckets=8, far=16):
    """The bucket of each pair of positions, (n, n)."""
    distance = np.arange(n)[None] - np.arange(n)[:, None]
    first = 0
    if bidirectional:
        buckets //= 2
        first, distance = (distance > 0) * buckets, np.abs(distance)
    else:
        distance = -np.minimum(distance, 0)
    exact = buckets // 2
    large = np.log(np.maximum(distance, 1) / exact) / math.log(far / exact) * (buckets - exact)
    large = np.minimum(exact + large.astype(int), buckets - 1)
    return first + np.where(distance < exact, distance, large)


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.relative_attention_bias = nn.Embedding(8, HEADS)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = (layer(x).view(b, t, HEADS, SIZE).transpose(1, 2) for layer in (self.q, self.k, self.v))
        bias = self.relative_attention_bias(torch.from_numpy(bucket(t, True))).permute(2, 0, 1)
        y = (q @ k.transpose(-1, -2) + bias).softmax(-1) @ v  # T5 does not scale
        return self.o(y.transpose(1, 2).reshape(b, t, WIDTH))


class Port(nnx.Module):
    def __init__(self, rngs):
        self.q, self.k, self.v, self.o = (
            nnx.Linear(WIDTH, WIDTH, use_bias=False, rngs=rngs) for _ in range(4)
        )
        self.relative_attention_bias = nnx.Embed(8, HEADS, rngs=rngs)

    def __call__(self, x):
        b, t, _ = x.shape
        q, k, v = (layer(x).reshape(b, t, HEADS, SIZE) for layer in (self.q, self.k, self.v))
        bias = self.relative_attention_bias(bucket(t, bidirectional=not FAULT)).transpose(2, 0, 1)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) + bias
        return self.o(jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v).reshape(b, t, WIDTH))


def reference():
    return Reference()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.standard_normal((2, 12, WIDTH)).astype(np.float32)
