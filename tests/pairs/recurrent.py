"""Group norm over a convolution in one dimension, an LSTM cell and a GRU cell, each called five times."""

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from tests.pairs import Fault, images, randomise

STEPS, WIDTH = 5, 8


class TorchNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(3, WIDTH, 3, padding=1), nn.GroupNorm(2, WIDTH)
        self.lstm, self.gru = nn.LSTMCell(WIDTH, WIDTH), nn.GRUCell(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        h = c = g = torch.zeros(len(x), WIDTH, dtype=x.dtype)
        for t in range(STEPS):
            h, c = self.lstm(x[:, :, t], (h, c))
            g = self.gru(h, g)
        return self.head(g), (h, c)


def torch_model(seed=0):
    return randomise(TorchNet(), seed).eval()


class GRU(nnx.Module):
    """PyTorch's GRU cell; nnx.GRUCell lacks one bias."""

    def __init__(self, fault, rngs):
        self.fault = fault
        self.weight_ih, self.weight_hh = (nnx.Param(jnp.zeros((WIDTH, 3 * WIDTH))) for _ in range(2))
        self.bias_ih, self.bias_hh = (nnx.Param(jnp.zeros(3 * WIDTH)) for _ in range(2))

    def __call__(self, x, h):
        i = jnp.split(x @ self.weight_ih[...] + self.bias_ih[...], 3, -1)
        g = jnp.split(h @ self.weight_hh[...] + self.bias_hh[...], 3, -1)
        r, z = jax.nn.sigmoid(i[0] + g[0]), jax.nn.sigmoid(i[1] + g[1])
        if self.fault == "gates_exchanged":
            r, z = z, r
        if self.fault == "reset_before_product":
            w, b = self.weight_hh[...][:, 2 * WIDTH :], self.bias_hh[...][2 * WIDTH :]
            n = jnp.tanh(i[2] + (r * h) @ w + b)
        else:
            n = jnp.tanh(i[2] + r * g[2])
        return z * n + (1 - z) * h if self.fault == "update_exchanged" else (1 - z) * n + z * h


class Net(nnx.Module):
    def __init__(self, fault, rngs):
        self.fault = fault
        padding = "CAUSAL" if fault == "causal_padding" else "SAME"
        self.conv = nnx.Conv(3, WIDTH, (3,), padding=padding, rngs=rngs)
        epsilon = {"default_epsilon": 1e-6}.get(fault, 1e-5)
        groups = 4 if fault == "groups" else 2
        self.norm = nnx.GroupNorm(WIDTH, num_groups=groups, epsilon=epsilon, rngs=rngs)
        self.lstm = nnx.OptimizedLSTMCell(WIDTH, WIDTH, rngs=rngs)
        self.gru = nnx.GRUCell(WIDTH, WIDTH, rngs=rngs) if fault == "flax_gru_cell" else GRU(fault, rngs)
        self.head = nnx.Linear(WIDTH, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        h = c = jnp.zeros((x.shape[0], WIDTH), x.dtype)
        g = jnp.ones_like(h) if self.fault == "first_state" else h
        order = range(STEPS - 1, -1, -1) if self.fault == "backwards_in_time" else range(STEPS)
        for t in order:
            (c, h), _ = self.lstm((c, h), x[:, t])
            if self.fault == "flax_gru_cell":
                g, _ = self.gru(g, h)
            else:
                g = self.gru(h, g)
        return self.head(h if self.fault == "other_state" else g), (h, c)


def flax_model(fault=""):
    return Net(fault, nnx.Rngs(0))


def inputs(rng):
    return images(rng, 2, 3, STEPS)


FAULTS = {
    "causal_padding": Fault("conv", r"padding \(\(1, 1\),\)"),
    "default_epsilon": Fault("norm", "epsilon is 1e-06 in the port, 1e-05"),
    "groups": Fault("norm", "groups|numbers"),
    "gates_exchanged": Fault("gru", "exchanged"),
    "reset_before_product": Fault("gru", "reset|where the reference takes"),
    "update_exchanged": Fault("gru", "exchanged|where the reference takes"),
    "flax_gru_cell": Fault("gru", "bias"),
    "first_state": Fault("gru", "1"),
    "backwards_in_time": Fault("lstm", "reversed|where the reference takes"),
    "other_state": Fault("head", "where the reference takes"),
}
