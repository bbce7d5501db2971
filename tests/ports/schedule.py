"""A cosine schedule that ends at step n - 1 in PyTorch, at step n in Optax (spd 642)."""

import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from torch import nn

FAULT = False
STEPS = 20


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
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.1 + 0.45 * (1 + np.cos(np.pi * step / (STEPS - 1)))
    )


def port_optimizer():
    if FAULT:
        return optax.adam(optax.cosine_decay_schedule(1e-3, STEPS, alpha=0.1))  # FAULT
    return optax.adam(lambda step: 1e-3 * (0.1 + 0.45 * (1 + jnp.cos(jnp.pi * step / (STEPS - 1)))))
