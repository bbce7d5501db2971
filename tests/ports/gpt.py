"""A GPT with rotary positions, RMS norms, SwiGLU and tied embeddings; the fault rotates the values too."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

FAULT = False
WIDTH, HEADS, WORDS = 16, 2, 20
SIZE = WIDTH // HEADS


def reference_rope(x):
    frequencies = 1 / 10000 ** (torch.arange(0, SIZE, 2, dtype=x.dtype) / SIZE)
    angles = torch.outer(torch.arange(x.shape[-2], dtype=x.dtype), frequencies)
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


class ReferenceBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH, eps=1e-6), nn.RMSNorm(WIDTH, eps=1e-6)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.w1, self.w3 = (nn.Linear(WIDTH, 32, bias=False) for _ in range(2))
        self.w2, self.drop = nn.Linear(32, WIDTH, bias=False), nn.Dropout(0.1)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(reference_rope(q), reference_rope(k), v, is_causal=True)
        x = x + self.drop(self.proj(y.transpose(1, 2).reshape(b, t, WIDTH)))
        y = self.norm2(x)
        return x + self.drop(self.w2(functional.silu(self.w1(y)) * self.w3(y)))


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok, self.norm = nn.Embedding(WORDS, WIDTH), nn.RMSNorm(WIDTH, eps=1e-6)
        self.blocks = nn.ModuleList(ReferenceBlock() for _ in range(2))
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.tok.weight

    def forward(self, ids):
        x = self.tok(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def rope(x):
    frequencies = 1 / 10000 ** (jnp.arange(0, SIZE, 2) / SIZE)
    angles = jnp.outer(jnp.arange(x.shape[1]), frequencies)[:, None]
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate(
        [a * jnp.cos(angles) - b * jnp.sin(angles), b * jnp.cos(angles) + a * jnp.sin(angles)], -1
    )


class Block(nnx.Module):
    def __init__(self, rngs):
        options = {"use_bias": False, "rngs": rngs}
        self.norm1, self.norm2 = (nnx.RMSNorm(WIDTH, epsilon=1e-6, rngs=rngs) for _ in range(2))
        self.qkv, self.proj = nnx.Linear(WIDTH, 3 * WIDTH, **options), nnx.Linear(WIDTH, WIDTH, **options)
        self.w1, self.w3 = nnx.Linear(WIDTH, 32, **options), nnx.Linear(WIDTH, 32, **options)
        self.w2, self.drop = nnx.Linear(32, WIDTH, **options), nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        b, t, _ = x.shape
        q, k, v = jnp.split(self.qkv(self.norm1(x)).reshape(b, t, 3 * HEADS, SIZE), 3, axis=2)
        q, k = rope(q), rope(k)
        if FAULT:
            v = rope(v)  # FAULT
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(SIZE)
        scores = jnp.where(jnp.tril(jnp.ones((t, t), bool)), scores, jnp.finfo(scores.dtype).min)
        y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)  # FAULT
        x = x + self.drop(self.proj(y.reshape(b, t, WIDTH)))
        y = self.norm2(x)
        return x + self.drop(self.w2(nnx.silu(self.w1(y)) * self.w3(y)))


class Port(nnx.Module):
    def __init__(self, rngs):
        self.tok, self.norm = nnx.Embed(WORDS, WIDTH, rngs=rngs), nnx.RMSNorm(WIDTH, epsilon=1e-6, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])

    def __call__(self, ids):
        x = self.tok(ids)
        for block in self.blocks:
            x = block(x)
        return self.tok.attend(self.norm(x))


def reference():
    return Reference()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.integers(0, WORDS, (2, 7))
