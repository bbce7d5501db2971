"""A pair whose reference needs PyTorch only and whose port needs JAX only, for tests/test_environments.py."""

import os

import numpy as np

FAULT = os.environ.get("FAULT", "")


def reference():
    import torch
    from torch import nn

    class Reference(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Linear(8, 3)

        def forward(self, x):
            x = torch.relu(self.norm(self.conv(x)))
            return self.head(nn.functional.gelu(x.mean((2, 3))))

    torch.manual_seed(0)
    return Reference().eval()


def port():
    from flax import nnx

    class Port(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 8, (3, 3), 2, padding="SAME" if FAULT == "padding" else 1, rngs=rngs)
            self.norm, self.head = nnx.BatchNorm(8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm(self.conv(x), use_running_average=True))
            return self.head(nnx.gelu(x.mean((1, 2)), approximate=FAULT == "gelu"))

    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.standard_normal((2, 3, 8, 8)).astype(np.float32)


def reference_loss(y):
    return (y**2).mean()


port_loss = reference_loss


def reference_optimizer(parameters):
    import torch

    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.02)


def port_optimizer():
    import optax

    return optax.adamw(1e-3, weight_decay=0.01 if FAULT == "decay" else 0.02)
