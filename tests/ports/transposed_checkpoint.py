"""Given weights of a transposed convolution (jax 11252): the faulty port uses the kernel unflipped."""

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn

FAULT = False


class Port(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(4, 4, (1, 1), rngs=rngs)
        options = {"padding": "VALID", "transpose_kernel": not FAULT}
        self.up = nnx.ConvTranspose(4, 4, (4, 4), strides=(4, 4), rngs=rngs, **options)

    def __call__(self, x):
        return self.up(self.conv(x))


def reference():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 4, 4, stride=4))


def port():
    model = Port(nnx.Rngs(0))
    for given, layer in zip(reference(), (model.conv, model.up), strict=True):
        layer.kernel[...] = jnp.asarray(given.weight.detach().numpy().transpose(2, 3, 1, 0))
        layer.bias[...] = jnp.asarray(given.bias.detach().numpy())
    return model


def inputs(rng):
    return rng.standard_normal((2, 4, 3, 3)).astype(np.float32)
