"""A Fourier neural operator, whose weights are complex."""

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

FAULT = False
WIDTH, MODES = 4, 2


class ReferenceSpectral(nn.Module):
    def __init__(self):
        super().__init__()
        shape = (WIDTH, WIDTH, MODES, MODES)
        self.w1, self.w2 = (nn.Parameter(torch.randn(shape, dtype=torch.cfloat) / WIDTH) for _ in range(2))

    def forward(self, x):
        f = torch.fft.rfft2(x)
        out = torch.zeros_like(f)
        out[:, :, :MODES, :MODES] = torch.einsum("bixy,ioxy->boxy", f[:, :, :MODES, :MODES], self.w1)
        out[:, :, -MODES:, :MODES] = torch.einsum("bixy,ioxy->boxy", f[:, :, -MODES:, :MODES], self.w2)
        return torch.fft.irfft2(out, s=x.shape[-2:])


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.lift, self.spectral = nn.Conv2d(1, WIDTH, 1), ReferenceSpectral()
        self.w, self.out = nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, 1, 1)

    def forward(self, x):
        x = self.lift(x)
        return self.out(functional.gelu(self.spectral(x) + self.w(x)))


class Spectral(nnx.Module):
    def __init__(self):
        shape = (WIDTH, WIDTH, MODES, MODES)
        self.w1, self.w2 = (nnx.Param(jnp.zeros(shape, jnp.complex64)) for _ in range(2))

    def __call__(self, x):
        f = jnp.fft.rfft2(x, axes=(1, 2), norm="ortho" if FAULT else None)
        low = jnp.einsum("bxyi,ioxy->bxyo", f[:, :MODES, :MODES], self.w1[...])
        high = jnp.einsum("bxyi,ioxy->bxyo", f[:, -MODES:, :MODES], self.w2[...])
        out = jnp.zeros_like(f).at[:, :MODES, :MODES].set(low).at[:, -MODES:, :MODES].set(high)
        return jnp.fft.irfft2(out, s=x.shape[1:3], axes=(1, 2))


class Port(nnx.Module):
    def __init__(self, rngs):
        self.lift, self.spectral = nnx.Conv(1, WIDTH, (1, 1), rngs=rngs), Spectral()
        self.w, self.out = nnx.Conv(WIDTH, WIDTH, (1, 1), rngs=rngs), nnx.Conv(WIDTH, 1, (1, 1), rngs=rngs)

    def __call__(self, x):
        x = self.lift(x)
        return self.out(nnx.gelu(self.spectral(x) + self.w(x), approximate=False))


def reference():
    return Reference()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.standard_normal((2, 1, 8, 8)).astype(np.float32)
