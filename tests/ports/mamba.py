"""A Mamba block: a causal depthwise convolution and a selective scan; ReLU for softplus."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

FAULT = False
WIDTH, INNER, STATE, RANK = 6, 8, 4, 2


class ReferenceMamba(nn.Module):
    def __init__(self):
        super().__init__()
        self.in_proj = nn.Linear(WIDTH, 2 * INNER, bias=False)
        self.conv1d = nn.Conv1d(INNER, INNER, 4, groups=INNER, padding=3)
        self.x_proj = nn.Linear(INNER, RANK + 2 * STATE, bias=False)
        self.dt_proj, self.out_proj = nn.Linear(RANK, INNER), nn.Linear(INNER, WIDTH, bias=False)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, STATE + 1).repeat(INNER, 1)))
        self.D = nn.Parameter(torch.ones(INNER))

    def forward(self, x):
        x, z = self.in_proj(x).chunk(2, -1)
        t = x.shape[1]
        x = functional.silu(self.conv1d(x.transpose(1, 2))[..., :t].transpose(1, 2))
        dt, b, c = self.x_proj(x).split([RANK, STATE, STATE], -1)
        dt = functional.softplus(self.dt_proj(dt))
        a = -torch.exp(self.A_log)
        h, out = x.new_zeros(len(x), INNER, STATE), []
        for i in range(t):
            h = torch.exp(dt[:, i, :, None] * a) * h + (dt[:, i] * x[:, i])[..., None] * b[:, i, None]
            out.append((h * c[:, i, None]).sum(-1))
        y = torch.stack(out, 1) + x * self.D
        return self.out_proj(y * functional.silu(z))


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.mixer, self.head = nn.LayerNorm(WIDTH), ReferenceMamba(), nn.Linear(WIDTH, 3)

    def forward(self, x):
        return self.head(x + self.mixer(self.norm(x)))


class Mamba(nnx.Module):
    def __init__(self, rngs):
        self.in_proj = nnx.Linear(WIDTH, 2 * INNER, use_bias=False, rngs=rngs)
        self.conv1d = nnx.Conv(INNER, INNER, (4,), feature_group_count=INNER, padding=((3, 3),), rngs=rngs)
        self.x_proj = nnx.Linear(INNER, RANK + 2 * STATE, use_bias=False, rngs=rngs)
        self.dt_proj = nnx.Linear(RANK, INNER, rngs=rngs)
        self.out_proj = nnx.Linear(INNER, WIDTH, use_bias=False, rngs=rngs)
        self.A_log = nnx.Param(jnp.log(jnp.tile(jnp.arange(1.0, STATE + 1), (INNER, 1))))
        self.D = nnx.Param(jnp.ones(INNER))

    def __call__(self, x):
        x, z = jnp.split(self.in_proj(x), 2, -1)
        x = nnx.silu(self.conv1d(x)[:, : x.shape[1]])
        dt, b, c = jnp.split(self.x_proj(x), [RANK, RANK + STATE], -1)
        dt = self.dt_proj(dt)
        dt = jax.nn.relu(dt) if FAULT else jax.nn.softplus(dt)
        a = -jnp.exp(self.A_log[...])

        def step(h, item):
            dt, b, c, x = item
            h = jnp.exp(dt[..., None] * a) * h + (dt * x)[..., None] * b[:, None]
            return h, (h * c[:, None]).sum(-1)

        over_time = [y.swapaxes(0, 1) for y in (dt, b, c, x)]
        _, y = jax.lax.scan(step, jnp.zeros((x.shape[0], INNER, STATE), x.dtype), over_time)
        return self.out_proj((y.swapaxes(0, 1) + x * self.D[...]) * nnx.silu(z))


class Port(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.mixer = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs), Mamba(rngs)
        self.head = nnx.Linear(WIDTH, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(x + self.mixer(self.norm(x)))


def reference():
    return Reference()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.standard_normal((2, 6, WIDTH)).astype(np.float32)
