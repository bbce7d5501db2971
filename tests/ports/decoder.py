"""A transformer's decoder layer with a mask for padding; the faulty port's cross attention lacks it."""

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn

FAULT = False
WIDTH, WORDS = 8, 11


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS)
        self.layer = nn.TransformerDecoderLayer(WIDTH, 2, 16, batch_first=True, dropout=0.0)

    def forward(self, ids, memory, padding):
        mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
        x = self.layer(self.embed(ids), memory, tgt_mask=mask, memory_key_padding_mask=padding)
        return self.head(x)


class Port(nnx.Module):
    def __init__(self, rngs):
        self.embed, self.head = nnx.Embed(WORDS, WIDTH, rngs=rngs), nnx.Linear(WIDTH, WORDS, rngs=rngs)
        self.self_attn, self.multihead_attn = (
            nnx.MultiHeadAttention(2, WIDTH, decode=False, rngs=rngs) for _ in range(2)
        )
        self.norm1, self.norm2, self.norm3 = (nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs) for _ in range(3))
        self.linear1, self.linear2 = nnx.Linear(WIDTH, 16, rngs=rngs), nnx.Linear(16, WIDTH, rngs=rngs)

    def __call__(self, ids, memory, padding):
        x = self.embed(ids)
        x = self.norm1(x + self.self_attn(x, mask=nnx.make_causal_mask(ids, dtype=bool)))
        keep = nnx.make_attention_mask(jnp.ones_like(ids), ~padding, dtype=bool)
        x = self.norm2(x + self.multihead_attn(x, memory, memory, mask=None if FAULT else keep))
        return self.head(self.norm3(x + self.linear2(nnx.relu(self.linear1(x)))))


def reference():
    return Reference().eval()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    memory = rng.standard_normal((2, 6, WIDTH)).astype(np.float32)
    return rng.integers(0, WORDS, (2, 4)), memory, np.arange(6)[None] >= np.array([[6], [4]])
