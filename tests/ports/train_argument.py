"""A port that takes train= and rngs=, as those from Linen do; batch norm in evaluation mode."""

import numpy as np
import torch
from flax import nnx
from torch import nn

FAULT = False


class Port(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), use_bias=False, rngs=rngs)
        self.bn = nnx.BatchNorm(8, momentum=0.9, epsilon=1e-3 if FAULT else 1e-5, rngs=rngs)
        self.drop, self.head = nnx.Dropout(0.2), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x, *, train, rngs=None):
        x = self.bn(self.conv(x), use_running_average=not train)  # FAULT
        x = self.drop(nnx.relu(x), deterministic=not train, rngs=rngs)
        return self.head(x.mean((1, 2)))


def reference():
    conv, norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
    tail = nn.ReLU(), nn.Dropout(0.2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    model = nn.Sequential(conv, norm, *tail)
    model(2 * torch.randn(8, 3, 6, 6) + 1)  # in train mode, for running statistics that are not 0 and 1
    return model.eval()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return {"input": rng.standard_normal((4, 3, 6, 6)).astype(np.float32)}


def port_inputs(inputs):
    return {"x": inputs["input"].transpose(0, 2, 3, 1), "train": False}
