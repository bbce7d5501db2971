"""nn.Linear in PyTorch, raw parameters and @ in the port."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from torch import nn
from torch.nn import functional

FAULT = False


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.w1, self.w2 = nn.Linear(6, 12, bias=False), nn.Linear(12, 5, bias=False)

    def forward(self, x):
        return self.w2(functional.gelu(self.w1(self.norm(x))))


class Port(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(6, epsilon=1e-5, rngs=rngs)
        self.w1, self.w2 = nnx.Param(jnp.zeros((6, 12))), nnx.Param(jnp.zeros((12, 5)))

    def __call__(self, x):
        return jax.nn.gelu(self.norm(x) @ self.w1[...], approximate=FAULT) @ self.w2[...]


def reference():
    return Reference()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.standard_normal((4, 6)).astype(np.float32)
