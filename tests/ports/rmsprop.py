"""RMSprop's epsilon: PyTorch adds it outside the root, Optax inside by default (optax 532)."""

import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from torch import nn

FAULT = False


class Port(nnx.Module):
    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(jnp.tanh(self.first(x)))


def reference():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.standard_normal((4, 6)).astype(np.float32)


def reference_loss(y):
    return (y**2).mean()


port_loss = reference_loss


def reference_optimizer(parameters):
    return torch.optim.RMSprop(parameters, lr=6e-4, alpha=0.99, eps=0.01)


def port_optimizer():
    return optax.rmsprop(6e-4, decay=0.99, eps=0.01, eps_in_sqrt=FAULT)
