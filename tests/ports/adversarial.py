"""Faults chosen to fool a comparison by values: transpositions, reversals, and a gate that is zero."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn

FAULT = ""
WIDTH = 8


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, 3, 1, 1)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.gate, self.head = nn.Parameter(torch.zeros(WIDTH)), nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = torch.relu(self.conv(x)).flatten(2).transpose(1, 2)
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        y = scores.softmax(-1) @ self.value(x)
        return self.head(x + self.gate * torch.tanh(y))


class Port(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, WIDTH, (3, 3), padding=1, rngs=rngs)
        self.query, self.key, self.value = (nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(3))
        self.gate, self.head = nnx.Param(jnp.zeros(WIDTH)), nnx.Linear(WIDTH, 3, rngs=rngs)

    def __call__(self, x):
        if FAULT == "height and width":
            x = x.transpose(0, 2, 1, 3)  # FAULT: height and width
        if FAULT == "flipped":
            x = x[:, ::-1]  # FAULT: flipped
        if FAULT == "batch reversed":
            x = x[::-1]  # FAULT: batch reversed
        x = nnx.relu(self.conv(x))
        x = x.reshape(x.shape[0], -1, WIDTH)
        scores = self.query(x) @ self.key(x).transpose(0, 2, 1)
        if FAULT == "scores":
            scores = scores.transpose(0, 2, 1)  # FAULT: scores
        y = jax.nn.softmax(scores, -1) @ self.value(x)
        return self.head(x + self.gate[...] * (nnx.relu(y) if FAULT == "gate" else jnp.tanh(y)))


def reference():
    return Reference()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.standard_normal((2, 3, 4, 4)).astype(np.float32)
