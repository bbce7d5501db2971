"""Blocks that nnx.vmap makes and nnx.scan runs."""

import numpy as np
from flax import nnx
from torch import nn
from torch.nn import functional

FAULT = False
WIDTH, LAYERS = 8, 3


class ReferenceBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)

    def forward(self, x):
        return x + self.fc2(functional.gelu(self.fc1(self.norm(x))))


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 3)
        self.blocks = nn.ModuleList(ReferenceBlock() for _ in range(LAYERS))

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)
        self.fc1, self.fc2 = nnx.Linear(WIDTH, 16, rngs=rngs), nnx.Linear(16, WIDTH, rngs=rngs)

    def __call__(self, x):
        return x + self.fc2(nnx.gelu(self.fc1(self.norm(x)), approximate=FAULT))


class Port(nnx.Module):
    def __init__(self, rngs):
        self.first, self.head = nnx.Linear(4, WIDTH, rngs=rngs), nnx.Linear(WIDTH, 3, rngs=rngs)
        self.blocks = nnx.split_rngs(splits=LAYERS)(nnx.vmap(Block))(rngs)

    def __call__(self, x):
        scan = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.head(scan(self.first(x), self.blocks))


def reference():
    return Reference()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.standard_normal((2, 5, 4)).astype(np.float32)
