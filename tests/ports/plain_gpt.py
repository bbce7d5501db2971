"""A GPT as a plain function of a dictionary, with lax.scan over blocks, remat, and vmap over heads."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn import functional

import lockstep

FAULT = False
WIDTH, HEADS, LAYERS, WORDS = 8, 2, 2, 13
SIZE = WIDTH // HEADS


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = self.qkv(self.ln1(x)).view(b, t, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, WIDTH))
        return x + self.down(functional.gelu(self.up(self.ln2(x)), approximate="tanh"))


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok, self.pos = nn.Embedding(WORDS, WIDTH), nn.Parameter(torch.randn(16, WIDTH))
        self.blocks, self.ln = nn.ModuleList(Block() for _ in range(LAYERS)), nn.LayerNorm(WIDTH)

    def forward(self, ids):
        x = self.tok(ids) + self.pos[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.ln(x) @ self.tok.weight.T


def norm(p, x):
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def attention(q, k, v):
    scores = q @ k.T / (1 if FAULT else np.sqrt(SIZE))
    causal = jnp.tri(q.shape[0], dtype=bool)
    return jax.nn.softmax(jnp.where(causal, scores, -1e10), -1) @ v


def block(x, p):
    q, k, v = jnp.einsum("btd,dchk->cbhtk", norm(p["ln1"], x), p["wqkv"]) + p["bqkv"][:, None, :, None]
    y = jax.vmap(jax.vmap(attention))(q, k, v)
    x = x + jnp.einsum("bhtk,hkd->btd", y, p["wo"]) + p["bo"]
    return x + jax.nn.gelu(norm(p["ln2"], x) @ p["up"] + p["b_up"]) @ p["down"] + p["b_down"], None


def forward(p, ids):
    x = p["tok"][ids] + p["pos"][: ids.shape[1]]
    x, _ = jax.lax.scan(jax.checkpoint(block), x, p["blocks"])
    return norm(p["ln"], x) @ p["tok"].T


def reference():
    return Reference()


def port():
    rng = np.random.default_rng(1)

    def tree(**shapes):
        return {name: jnp.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()}

    blocks = tree(
        wqkv=(LAYERS, WIDTH, 3, HEADS, SIZE),
        bqkv=(LAYERS, 3, HEADS, SIZE),
        wo=(LAYERS, HEADS, SIZE, WIDTH),
        bo=(LAYERS, WIDTH),
        up=(LAYERS, WIDTH, 16),
        b_up=(LAYERS, 16),
        down=(LAYERS, 16, WIDTH),
        b_down=(LAYERS, WIDTH),
    )
    for name in ("ln1", "ln2"):
        blocks[name] = tree(scale=(LAYERS, WIDTH), bias=(LAYERS, WIDTH))
    params = tree(tok=(WORDS, WIDTH), pos=(16, WIDTH))
    return lockstep.function(forward, {**params, "ln": tree(scale=(WIDTH,), bias=(WIDTH,)), "blocks": blocks})


def inputs(rng):
    return rng.integers(0, WORDS, (2, 6))
