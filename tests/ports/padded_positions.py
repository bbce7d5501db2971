"""RoBERTa's positions start after padding_idx, and padding keeps it (transformers 1761, 47496).

PyTorch's padding_idx has no gradient, Flax's row has one. Here the loss takes no padded place.
"""

import jax.numpy as jnp
from flax import nnx
from torch import nn

FAULT = False
PAD = 1


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.word = nn.Embedding(12, 8, padding_idx=PAD)
        self.position = nn.Embedding(10, 8, padding_idx=PAD)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, ids):
        keep = (ids != PAD).long()
        return self.head(self.norm(self.word(ids) + self.position(keep.cumsum(1) * keep + PAD)))


class Port(nnx.Module):
    def __init__(self, rngs):
        self.word, self.position = nnx.Embed(12, 8, rngs=rngs), nnx.Embed(10, 8, rngs=rngs)
        self.norm, self.head = nnx.LayerNorm(8, epsilon=1e-5, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, ids):
        keep = (ids != PAD).astype(jnp.int32)
        at = jnp.arange(ids.shape[1])[None] if FAULT else jnp.cumsum(keep, 1) * keep + PAD
        return self.head(self.norm(self.word(ids) + self.position(at)))


def reference():
    return Reference()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    ids = rng.integers(2, 12, (3, 6))
    ids[1, 4:] = ids[2, 3:] = PAD
    return ids


def reference_loss(y):
    return (y[0] ** 2).sum() + (y[1, :4] ** 2).sum()


port_loss = reference_loss
