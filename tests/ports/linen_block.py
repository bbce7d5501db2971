"""A Linen port: convolution, batch norm in evaluation mode and a transformer's block."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen
from torch import nn
from torch.nn import functional

import lockstep

FAULT = False


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.norm, self.attn = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc1, self.fc2, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x))).flatten(2).transpose(1, 2)
        y = self.norm(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        x = x + self.fc2(functional.gelu(self.fc1(x)))
        return self.head(x.mean(1))


class Port(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Conv(8, (3, 3), 2, padding=1, use_bias=False, name="conv")(x)
        x = linen.relu(linen.BatchNorm(use_running_average=True, name="bn")(x))
        x = x.reshape(x.shape[0], -1, 8)
        y = linen.LayerNorm(epsilon=1e-6 if FAULT else 1e-5, name="norm")(x)
        x = x + linen.MultiHeadDotProductAttention(2, name="attn")(y)
        y = linen.gelu(linen.Dense(16, name="fc1")(x), approximate=False)
        x = x + linen.Dense(8, name="fc2")(y)
        return linen.Dense(4, name="head")(x.mean(1))


def reference():
    model = Reference()
    model(2 * torch.randn(8, 3, 8, 8) + 1)  # in train mode, for running statistics that are not 0 and 1
    return model.eval()


def port():
    return lockstep.linen(Port(), Port().init(jax.random.key(0), jnp.ones((1, 8, 8, 3))))


def inputs(rng):
    return rng.standard_normal((2, 3, 8, 8)).astype(np.float32)
