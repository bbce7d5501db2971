"""A diffusion U-Net: time in float32 or in the model's type, skips, nnx.jit, dictionaries in and out."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

FAULT = False
FLOAT32 = True
WIDTH, TIME = 8, 16


def embed(t, library, dtype):
    """Sines and cosines of times, (n, TIME), with either library's functions of the same names."""
    dtype = library.float32 if FLOAT32 else dtype
    frequencies = library.exp(-np.log(10000) * library.arange(TIME // 2, dtype=dtype) / (TIME // 2))
    angles = t[:, None] * frequencies[None]
    return library.concatenate([library.sin(angles), library.cos(angles)], -1)


class ReferenceBlock(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, n_in), nn.Conv2d(n_in, n_out, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(4, n_out), nn.Conv2d(n_out, n_out, 3, padding=1)
        self.time, self.drop = nn.Linear(TIME, n_out), nn.Dropout(0.1)
        self.skip = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, x, e):
        y = self.conv1(functional.silu(self.norm1(x))) + self.time(functional.silu(e))[:, :, None, None]
        return self.skip(x) + self.conv2(self.drop(functional.silu(self.norm2(y))))


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(TIME, TIME), nn.SiLU(), nn.Linear(TIME, TIME))
        self.first, self.pool = nn.Conv2d(3, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, WIDTH, 3, 2, 1)
        self.down1, self.down2 = ReferenceBlock(WIDTH, WIDTH), ReferenceBlock(WIDTH, 2 * WIDTH)
        self.up, self.up1 = nn.Conv2d(2 * WIDTH, WIDTH, 3, padding=1), ReferenceBlock(2 * WIDTH, WIDTH)
        self.norm, self.out = nn.GroupNorm(4, WIDTH), nn.Conv2d(WIDTH, 3, 3, padding=1)

    def forward(self, sample, timestep):
        e = self.time(embed(timestep, torch, sample.dtype).to(sample.dtype))
        a = self.down1(self.first(sample), e)
        x = self.down2(self.pool(a), e)
        x = self.up(functional.interpolate(x, scale_factor=2, mode="nearest"))
        x = self.up1(torch.cat([x, a], 1), e)
        return {"sample": self.out(functional.silu(self.norm(x)))}


def conv(n_in, n_out, rngs, **options):
    return nnx.Conv(n_in, n_out, (3, 3), padding=1, rngs=rngs, **options)


def norm(n, rngs):
    return nnx.GroupNorm(n, num_groups=4, epsilon=1e-5, rngs=rngs)


class Block(nnx.Module):
    def __init__(self, n_in, n_out, rngs):
        self.norm1, self.conv1 = norm(n_in, rngs), conv(n_in, n_out, rngs)
        self.norm2, self.conv2 = norm(n_out, rngs), conv(n_out, n_out, rngs)
        self.time, self.drop = nnx.Linear(TIME, n_out, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)
        self.skip = nnx.Conv(n_in, n_out, (1, 1), rngs=rngs) if n_in != n_out else lambda x: x

    def __call__(self, x, e):
        y = self.conv1(nnx.silu(self.norm1(x))) + self.time(nnx.silu(e))[:, None, None]
        return self.skip(x) + self.conv2(self.drop(nnx.silu(self.norm2(y))))


class Port(nnx.Module):
    def __init__(self, rngs):
        self.time = nnx.Sequential(
            nnx.Linear(TIME, TIME, rngs=rngs), nnx.silu, nnx.Linear(TIME, TIME, rngs=rngs)
        )
        self.first, self.pool = conv(3, WIDTH, rngs), conv(WIDTH, WIDTH, rngs, strides=2)
        self.down1, self.down2 = Block(WIDTH, WIDTH, rngs), Block(WIDTH, 2 * WIDTH, rngs)
        self.up, self.up1 = conv(2 * WIDTH, WIDTH, rngs), Block(2 * WIDTH, WIDTH, rngs)
        self.norm, self.out = norm(WIDTH, rngs), conv(WIDTH, 3, rngs)

    @nnx.jit
    def __call__(self, sample, timestep):
        e = self.time(embed(timestep, jnp, sample.dtype))
        a = self.down1(self.first(sample), e)
        x = self.down2(self.pool(a), e)
        n, h, w, c = x.shape
        x = self.up(jax.image.resize(x, (n, 2 * h, 2 * w, c), "nearest"))
        x = self.up1(jnp.concatenate([a, x] if FAULT else [x, a], -1), e)
        return {"sample": self.out(nnx.silu(self.norm(x)))}


def reference():
    return Reference()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    images = rng.standard_normal((2, 3, 8, 8)).astype(np.float32)
    return {"sample": images, "timestep": np.array([7, 800])}
