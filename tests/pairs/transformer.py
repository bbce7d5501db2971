"""A causal transformer block that people write themselves: fused projections, tied embeddings."""

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

from tests.pairs import Fault, randomise

WORDS, LENGTH, WIDTH, HEADS = 11, 7, 12, 3


class TorchNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.position = nn.Parameter(torch.zeros(LENGTH, WIDTH))
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.final = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids) + self.position
        shape = (*ids.shape, 3, HEADS, WIDTH // HEADS)
        q, k, v = self.qkv(self.norm1(x)).view(shape).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(x.shape))
        x = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return {"logits": self.head(self.final(x)), "hidden": x}


def torch_model(seed=0):
    return randomise(TorchNet(), seed).train()


class Embed(nnx.Embed):
    """PyTorch's padding_idx=0: that row has no gradient."""

    def __call__(self, ids):
        x = super().__call__(ids)
        return jnp.where((ids == 0)[..., None], jax.lax.stop_gradient(x), x)


class Net(nnx.Module):
    def __init__(self, fault, rngs):
        self.fault = fault
        self.embed = (nnx.Embed if fault == "padding_gradient" else Embed)(WORDS, WIDTH, rngs=rngs)
        self.position = nnx.Param(jnp.zeros((LENGTH, WIDTH)))
        epsilon = {"epsilon": 1e-5}
        self.norm1, self.norm2 = (
            nnx.LayerNorm(WIDTH, **epsilon, rngs=rngs),
            nnx.LayerNorm(WIDTH, **epsilon, rngs=rngs),
        )
        self.qkv, self.out = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs), nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.up, self.down = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs), nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)
        self.final = nnx.LayerNorm(WIDTH, **epsilon, rngs=rngs)
        self.head = nnx.Linear(WIDTH, WORDS, use_bias=False, rngs=rngs)

    def __call__(self, ids):
        table = self.embed.embedding[...]
        x = self.embed(ids)
        if self.fault == "scaled_embedding":
            x = x * WIDTH**0.5
        if self.fault == "shifted_positions":
            x = x + jnp.roll(self.position[...], 1, 0)
        elif self.fault != "no_positions":
            x = x + self.position[...]
        if self.fault == "post_norm":
            x = self.norm1(x)
            x = x + self.out(self.attention(self.qkv(x)))
        else:
            x = x + self.out(self.attention(self.qkv(self.norm1(x))))
        x = x + self.down(nnx.gelu(self.up(self.norm2(x)), approximate=self.fault == "tanh_gelu"))
        y = self.final(x)
        return {"logits": self.head(y) if self.fault == "untied" else y @ table.T, "hidden": x}

    def attention(self, qkv):
        n, t = qkv.shape[:2]
        if self.fault == "split_by_head":
            q, k, v = jnp.moveaxis(qkv.reshape(n, t, HEADS, 3, -1), 3, 0)
        else:
            q, k, v = jnp.moveaxis(qkv.reshape(n, t, 3, HEADS, -1), 2, 0)
        scale = WIDTH if self.fault == "scale_of_all_heads" else WIDTH // HEADS
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / (1 if self.fault == "no_scale" else scale**0.5)
        if self.fault != "no_mask":
            mask = jnp.tril(jnp.ones((t, t), bool), -1 if self.fault == "mask_without_present" else 0)
            scores = jnp.where(mask, scores, -1e30)
        if self.fault == "float32_softmax":
            weights = nnx.softmax(scores.astype(jnp.float32)).astype(scores.dtype)
        else:
            weights = nnx.softmax(scores, axis=-2 if self.fault == "softmax_over_queries" else -1)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        if self.fault == "heads_joined_wrongly":
            y = jnp.moveaxis(y, 2, 1)
        return y.reshape(n, t, WIDTH)


def flax_model(fault=""):
    return Net(fault, nnx.Rngs(0))


def inputs(rng):
    ids = rng.integers(1, WORDS, (3, LENGTH))
    ids[:, -1] = 0
    return ids


FAULTS = {
    "scaled_embedding": Fault("norm1", r"a factor is 3\.4641"),
    "shifted_positions": Fault("norm1", "shifted by one"),
    "no_positions": Fault("norm1", "parameter position"),
    "post_norm": Fault("norm2", "where the reference takes"),
    "split_by_head": Fault("out", "its axes 0 and 3|interleaved|heads"),
    "scale_of_all_heads": Fault("out", r"is 3\.4641 in the port, 2 in"),
    "no_scale": Fault("out", "a divisor is 1 in the port, 2 in|divides .* by (the square root of 4|2)"),
    "no_mask": Fault("out", "causal"),
    "mask_without_present": Fault("out", "causal|an added number is -1 in the port, 0"),
    "float32_softmax": Fault("out", "float32"),
    "softmax_over_queries": Fault("out", "axes|transposed"),
    "heads_joined_wrongly": Fault("out", "order of axes|transposed"),
    "tanh_gelu": Fault("down", "GELU with erf.*GELU with tanh"),
    "untied": Fault("head", "separate parameters"),
    "padding_gradient": Fault("embed", "padding_idx=0"),
}
