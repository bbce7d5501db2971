"""An embedding that is not trained: requires_grad is False in PyTorch, stop_gradient in the port."""

import jax
import optax
import torch
from flax import nnx
from torch import nn

FAULT = False


class Port(nnx.Module):
    def __init__(self, rngs):
        self.embed, self.fc = nnx.Embed(9, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, ids):
        x = self.embed(ids)
        return self.fc(x if FAULT else jax.lax.stop_gradient(x))


def reference():
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 3))
    model[0].weight.requires_grad_(False)
    return model


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.integers(0, 9, (4, 5))


def reference_loss(y):
    return (y**2).mean()


port_loss = reference_loss


def reference_optimizer(parameters):
    return torch.optim.SGD([p for p in parameters if p.requires_grad], lr=0.1)


def port_optimizer():
    return optax.sgd(0.1)
