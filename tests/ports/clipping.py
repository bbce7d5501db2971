"""Clipping of gradients: clip_grad_norm_ divides by norm + 1e-6, Optax by the norm (spd 643)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from torch import nn

FAULT = ""


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
    parameters = list(parameters)
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: torch.nn.utils.clip_grad_norm_(parameters, 0.01) and None)
    return optimizer


def clip(limit):
    """Clip as PyTorch does."""

    def update(gradients, state, params=None):
        factor = jnp.minimum(limit / (optax.global_norm(gradients) + 1e-6), 1)
        return jax.tree.map(lambda g: g * factor, gradients), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def port_optimizer():
    first = (
        optax.clip_by_global_norm(0.01) if FAULT == "epsilon" else clip(0.02 if FAULT == "limit" else 0.01)
    )
    return optax.chain(first, optax.sgd(0.1))
