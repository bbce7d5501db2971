"""PoolFormer's token mixer: average pooling whose padded places do not count."""

import numpy as np
from flax import nnx
from torch import nn
from torch.nn import functional

FAULT = False


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.pool = nn.GroupNorm(1, 8), nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.fc1, self.fc2 = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)

    def forward(self, x):
        y = self.norm(x)
        x = x + self.pool(y) - y
        return x + self.fc2(functional.gelu(self.fc1(x)))


class Port(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.GroupNorm(8, num_groups=1, epsilon=1e-5, rngs=rngs)
        self.fc1, self.fc2 = nnx.Conv(8, 16, (1, 1), rngs=rngs), nnx.Conv(16, 8, (1, 1), rngs=rngs)

    def __call__(self, x):
        y = self.norm(x)
        x = x + nnx.avg_pool(y, (3, 3), (1, 1), "SAME", count_include_pad=FAULT) - y
        return x + self.fc2(nnx.gelu(self.fc1(x), approximate=False))


def reference():
    return Reference()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.standard_normal((2, 8, 6, 6)).astype(np.float32)
