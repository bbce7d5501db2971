"""Four linear layers in PyTorch, nnx.MultiHeadAttention in the port."""

import numpy as np
from flax import nnx
from torch import nn
from torch.nn import functional

FAULT = False
WIDTH, HEADS = 8, 2


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x):
        b, t, _ = x.shape
        layers = self.q_proj, self.k_proj, self.v_proj
        q, k, v = (layer(x).view(b, t, HEADS, WIDTH // HEADS).transpose(1, 2) for layer in layers)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(y.transpose(1, 2).reshape(b, t, WIDTH))


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.attn, self.head = nn.LayerNorm(WIDTH), Attention(), nn.Linear(WIDTH, 3)

    def forward(self, x):
        return self.head(x + self.attn(self.norm(x)))


class Port(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 3, rngs=rngs)

    def __call__(self, x):
        mask = nnx.make_causal_mask(x[..., 0])
        return self.head(x + self.attn(self.norm(x), mask=None if FAULT else mask))


def reference():
    return Reference()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.standard_normal((2, 5, WIDTH)).astype(np.float32)
