"""Training steps with SGD, momentum and batch norm in train mode."""

import optax
import torch
from flax import nnx
from torch import nn

from tests.pairs import Fault, TorchBatchNorm, images, randomise

STEPS = 3


def torch_model(seed=0):
    layers = nn.Conv2d(2, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    return randomise(nn.Sequential(*layers), seed).train()


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), 2, padding=1, rngs=rngs)
        self.norm = TorchBatchNorm(4, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(64, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        return self.head(x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1))


def flax_model(fault=""):
    return Net(nnx.Rngs(0))


def inputs(rng):
    return images(rng, 4, 2, 8, 8)


def torch_optimizer(parameters):
    return torch.optim.SGD(parameters, lr=0.001, momentum=0.9, weight_decay=1e-2)


def flax_optimizer(fault=""):
    decay = optax.identity() if fault == "no_decay" else optax.add_decayed_weights(1e-2)
    if fault == "decoupled_decay":
        return optax.chain(optax.trace(0.9), decay, optax.scale(-0.001))
    if fault == "averaged_momentum":
        return optax.chain(decay, optax.ema(0.9, debias=False), optax.scale(-0.001))
    momentum = 0.1 if fault == "momentum_swapped" else 0.9
    return optax.chain(decay, optax.sgd(0.001, momentum=momentum, nesterov=fault == "nesterov"))


def options(fault=""):
    return {"optimizers": (torch_optimizer, flax_optimizer(fault)), "steps": STEPS}


ROW = f"(steps 1 to {STEPS})"
FAULTS = {
    "no_decay": Fault(ROW, "decay is 0, the reference's 0.01"),
    "decoupled_decay": Fault(ROW, "decay is decoupled"),
    "averaged_momentum": Fault(ROW, "averages the gradients"),
    "momentum_swapped": Fault(ROW, "momentum is 0.1"),
    "nesterov": Fault(ROW, "uses Nesterov's momentum, the reference does not"),
}
