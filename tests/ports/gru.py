"""nn.GRU against nnx.RNN over a cell of one's own with both biases; the reset gate before the product."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from torch import nn

FAULT = False


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(5, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        y, h = self.gru(x)
        return self.head(y), h[0]


class Cell(nnx.RNNCellBase):
    def __init__(self, n_in, n, rngs):
        self.n = n
        self.weight_ih, self.weight_hh = nnx.Param(jnp.zeros((n_in, 3 * n))), nnx.Param(jnp.zeros((n, 3 * n)))
        self.bias_ih, self.bias_hh = nnx.Param(jnp.zeros(3 * n)), nnx.Param(jnp.zeros(3 * n))

    def __call__(self, h, x):
        of_input = jnp.split(x @ self.weight_ih[...] + self.bias_ih[...], 3, -1)
        of_state = jnp.split(h @ self.weight_hh[...] + self.bias_hh[...], 3, -1)
        reset = jax.nn.sigmoid(of_input[0] + of_state[0])
        update = jax.nn.sigmoid(of_input[1] + of_state[1])
        new = reset * of_state[2]
        if FAULT:
            kernel, bias = self.weight_hh[...][:, 2 * self.n :], self.bias_hh[...][2 * self.n :]
            new = (reset * h) @ kernel + bias  # FAULT
        h = (1 - update) * jnp.tanh(of_input[2] + new) + update * h
        return h, h

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.zeros((*input_shape[:-1], self.n))

    @property
    def num_feature_axes(self):
        return 1


class Port(nnx.Module):
    def __init__(self, rngs):
        self.gru, self.head = nnx.RNN(Cell(5, 8, rngs), return_carry=True), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        h, y = self.gru(x)
        return self.head(y), h


def reference():
    return Reference()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.standard_normal((2, 6, 5)).astype(np.float32)
