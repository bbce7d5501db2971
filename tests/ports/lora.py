"""LoRA multiplies with alpha / rank (mlx-vlm 845, 986); nnx.LoRALinear with nothing."""

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn

FAULT = False
RANK, ALPHA = 2, 4


class LoRALinear(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.base = nn.Linear(n_in, n_out)
        self.lora_a, self.lora_b = nn.Linear(n_in, RANK, bias=False), nn.Linear(RANK, n_out, bias=False)

    def forward(self, x):
        return self.base(x) + self.lora_b(self.lora_a(x)) * (ALPHA / RANK)


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = LoRALinear(6, 8), LoRALinear(8, 3)

    def forward(self, x):
        return self.fc2(torch.tanh(self.fc1(x)))


class ScaledLoRALinear(nnx.LoRALinear):
    def __call__(self, x, out_sharding=None):
        return nnx.Linear.__call__(self, x) + self.lora(x) * (ALPHA / RANK)


class Port(nnx.Module):
    def __init__(self, rngs):
        make = nnx.LoRALinear if FAULT else ScaledLoRALinear
        self.fc1 = make(6, 8, lora_rank=RANK, rngs=rngs)
        self.fc2 = make(8, 3, lora_rank=RANK, rngs=rngs)

    def __call__(self, x):
        return self.fc2(jnp.tanh(self.fc1(x)))  # FAULT


def reference():
    return Reference()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.standard_normal((4, 6)).astype(np.float32)
