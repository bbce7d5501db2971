"""Rotary positions of halves; the faulty port rotates interleaved pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

FAULT = False
WIDTH, HEADS = 16, 2
SIZE = WIDTH // HEADS


def rotate_half(x):
    a, b = x.chunk(2, -1)
    return torch.cat([-b, a], -1)


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4)
        )

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = (
            project(x).view(b, t, HEADS, SIZE).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        frequencies = 1 / 10000 ** (torch.arange(0, SIZE, 2, dtype=x.dtype) / SIZE)
        angles = torch.outer(torch.arange(t, dtype=x.dtype), frequencies)
        angles = torch.cat([angles, angles], -1)
        q, k = (y * angles.cos() + rotate_half(y) * angles.sin() for y in (q, k))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, WIDTH))


def rotate(x, angles):
    if FAULT:
        a, b = x[..., ::2], x[..., 1::2]  # FAULT
    else:
        a, b = jnp.split(x, 2, -1)
    rotated = [a * jnp.cos(angles) - b * jnp.sin(angles), b * jnp.cos(angles) + a * jnp.sin(angles)]  # FAULT
    return jnp.stack(rotated, -1).reshape(x.shape) if FAULT else jnp.concatenate(rotated, -1)


class Port(nnx.Module):
    def __init__(self, rngs):
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nnx.Linear(WIDTH, WIDTH, use_bias=False, rngs=rngs) for _ in range(4)
        )

    def __call__(self, x):
        b, t, _ = x.shape
        q, k, v = (
            project(x).reshape(b, t, HEADS, SIZE) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        frequencies = 1 / 10000 ** (jnp.arange(0, SIZE, 2, dtype=x.dtype) / SIZE)
        angles = jnp.outer(jnp.arange(t, dtype=x.dtype), frequencies)[:, None]
        q, k = rotate(q, angles), rotate(k, angles)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(SIZE)
        scores = jnp.where(jnp.tril(jnp.ones((t, t), bool)), scores, -jnp.inf)
        return self.o_proj(jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v).reshape(b, t, WIDTH))


def reference():
    return Reference()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.standard_normal((2, 6, WIDTH)).astype(np.float32)
