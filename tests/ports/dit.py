"""A diffusion transformer: patches, a fixed table of positions, adaLN, class labels, remat, unpatchify."""

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

FAULT = False
REMAT = True
WIDTH, PATCH = 8, 2
POSITIONS = np.random.default_rng(3).standard_normal((1, 16, WIDTH)).astype(np.float32)


class ReferenceBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(WIDTH, elementwise_affine=False, eps=1e-6) for _ in range(2))
        self.attn = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)
        self.ada = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))

    def forward(self, x, c):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.ada(c)[:, None].chunk(6, -1)
        y = self.norm1(x) * (1 + scale1) + shift1
        x = x + gate1 * self.attn(y, y, y, need_weights=False)[0]
        y = self.norm2(x) * (1 + scale2) + shift2
        return x + gate2 * self.fc2(functional.gelu(self.fc1(y), approximate="tanh"))


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.label = nn.Conv2d(3, WIDTH, PATCH, PATCH), nn.Embedding(5, WIDTH)
        self.blocks = nn.ModuleList(ReferenceBlock() for _ in range(2))
        self.out = nn.Linear(WIDTH, PATCH * PATCH * 3)
        self.register_buffer("positions", torch.from_numpy(POSITIONS))

    def forward(self, x, labels):
        x = self.patch(x).flatten(2).transpose(1, 2) + self.positions
        c = self.label(labels)
        for block in self.blocks:
            x = block(x, c)
        x = self.out(x).view(-1, 4, 4, PATCH, PATCH, 3)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(-1, 3, 8, 8)


class Block(nnx.Module):
    def __init__(self, rngs):
        options = {"epsilon": 1e-6, "use_bias": False, "use_scale": False, "rngs": rngs}
        self.norm1, self.norm2 = nnx.LayerNorm(WIDTH, **options), nnx.LayerNorm(WIDTH, **options)
        self.attn = nnx.MultiHeadAttention(2, WIDTH, decode=False, rngs=rngs)
        self.fc1, self.fc2 = nnx.Linear(WIDTH, 16, rngs=rngs), nnx.Linear(16, WIDTH, rngs=rngs)
        self.ada = nnx.Sequential(nnx.silu, nnx.Linear(WIDTH, 6 * WIDTH, rngs=rngs))

    def __call__(self, x, c):
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(self.ada(c)[:, None], 6, -1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        if FAULT:
            shift2, scale2 = scale2, shift2
        y = self.norm2(x) * (1 + scale2) + shift2  # FAULT
        return x + gate2 * self.fc2(nnx.gelu(self.fc1(y)))


def run(block, x, c):
    return block(x, c)


class Port(nnx.Module):
    def __init__(self, rngs):
        self.patch = nnx.Conv(3, WIDTH, (PATCH, PATCH), strides=(PATCH, PATCH), padding="VALID", rngs=rngs)
        self.label, self.positions = nnx.Embed(5, WIDTH, rngs=rngs), nnx.Variable(jnp.asarray(POSITIONS))
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])
        self.out = nnx.Linear(WIDTH, PATCH * PATCH * 3, rngs=rngs)

    def __call__(self, x, labels):
        x = self.patch(x).reshape(-1, 16, WIDTH) + self.positions[...]
        c = self.label(labels)
        for block in self.blocks:
            x = (nnx.remat(run) if REMAT else run)(block, x, c)
        x = self.out(x).reshape(-1, 4, 4, PATCH, PATCH, 3)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, 8, 8, 3)


def reference():
    return Reference()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.standard_normal((2, 3, 8, 8)).astype(np.float32), np.array([1, 4])
