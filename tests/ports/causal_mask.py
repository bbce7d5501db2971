"""A mask of booleans in PyTorch, nnx.make_causal_mask's of float32 in the port."""

import numpy as np
import torch
from flax import nnx
from torch import nn

FAULT = False


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.attn = nn.Linear(5, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.head(self.attn(x, x, x, attn_mask=mask, need_weights=False)[0])


class Port(nnx.Module):
    def __init__(self, rngs):
        self.embed, self.head = nnx.Linear(5, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x)
        return self.head(self.attn(x, mask=None if FAULT else nnx.make_causal_mask(x[..., 0])))


def reference():
    return Reference()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.standard_normal((2, 6, 5)).astype(np.float32)
