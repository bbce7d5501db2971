"""Clipping, RMSprop and a cosine schedule together, each with what Optax does differently.

clip_grad_norm_ divides by norm + 1e-6, Optax by the norm (spd 643). RMSprop's epsilon is outside the root in
PyTorch, inside by default in Optax (optax 532). The schedule ends at step n - 1, Optax's at step n (spd 642).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from torch import nn

FAULT = ""
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


def factor(step, cos=np.cos):
    return 0.1 + 0.45 * (1 + cos(np.pi * step / (STEPS - 1)))


def reference_optimizer(parameters):
    parameters = list(parameters)
    optimizer = torch.optim.RMSprop(parameters, lr=6e-4, alpha=0.99, eps=0.01)
    optimizer.register_step_pre_hook(lambda *_: torch.nn.utils.clip_grad_norm_(parameters, 0.01) and None)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def clip(limit):
    """Clip as PyTorch does."""

    def update(gradients, state, params=None):
        factor = jnp.minimum(limit / (optax.global_norm(gradients) + 1e-6), 1)
        return jax.tree.map(lambda g: g * factor, gradients), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def port_optimizer():
    first = clip(0.02 if FAULT == "limit" else 0.01)
    if FAULT == "epsilon":
        first = optax.clip_by_global_norm(0.01)
    lr = optax.cosine_decay_schedule(6e-4, STEPS, alpha=0.1)
    if FAULT != "schedule":
        lr = lambda step: 6e-4 * factor(step, jnp.cos)  # noqa: E731
    return optax.chain(first, optax.rmsprop(lr, decay=0.99, eps=0.01, eps_in_sqrt=FAULT == "root"))
