"""Both models return a dataclass; the faulty port's second output is taken before the norm."""

import dataclasses

import jax
import numpy as np
import torch
from flax import nnx, struct
from torch import nn

FAULT = ""


@dataclasses.dataclass
class ReferenceOutput:
    logits: torch.Tensor
    hidden: torch.Tensor


@struct.dataclass
class PortOutput:
    logits: jax.Array
    hidden: jax.Array | None


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.norm, self.head = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        hidden = self.norm(self.fc(x))  # FAULT: missing in the port
        return ReferenceOutput(self.head(hidden), hidden)


class Port(nnx.Module):
    def __init__(self, rngs):
        self.fc, self.head = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
        self.norm = nnx.LayerNorm(8, epsilon=1e-5, rngs=rngs)

    def __call__(self, x):
        x = self.fc(x)  # FAULT: before the norm
        hidden = self.norm(x)
        if FAULT == "missing":
            return PortOutput(self.head(hidden), None)
        return PortOutput(self.head(hidden), x if FAULT == "before the norm" else hidden)


def reference():
    return Reference()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.standard_normal((4, 6)).astype(np.float32)
