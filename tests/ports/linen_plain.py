"""A Linen port whose layers have no names of their own."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from torch import nn

import lockstep

FAULT = False


class Port(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Dense(8)(x)
        return linen.Dense(3)(linen.silu(x) if FAULT else linen.relu(x))


def reference():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def port():
    return lockstep.linen(Port(), Port().init(jax.random.key(0), jnp.ones((2, 6))))


def inputs(rng):
    return rng.standard_normal((4, 6)).astype(np.float32)
