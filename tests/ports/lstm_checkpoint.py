"""Given weights of an LSTM (flax 3746): PyTorch has two biases, Flax their sum; the faulty port takes one."""

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn

FAULT = False


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(5, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        _, (h, _) = self.lstm(x)
        return self.head(h[-1])


class Port(nnx.Module):
    def __init__(self, rngs):
        self.lstm = nnx.RNN(nnx.LSTMCell(5, 8, rngs=rngs), return_carry=True)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        (_, h), _ = self.lstm(x)
        return self.head(h)


def reference():
    torch.manual_seed(0)
    return Reference()


def port():
    given = {name: jnp.asarray(tensor.numpy()) for name, tensor in reference().state_dict().items()}
    model = Port(nnx.Rngs(0))
    for i, gate in enumerate("ifgo"):
        rows = slice(8 * i, 8 * i + 8)
        of_input = getattr(model.lstm.cell, "if_" if gate == "f" else "i" + gate)
        of_state = getattr(model.lstm.cell, "h" + gate)
        of_input.kernel[...] = given["lstm.weight_ih_l0"][rows].T
        of_state.kernel[...] = given["lstm.weight_hh_l0"][rows].T
        bias = given["lstm.bias_hh_l0"][rows]
        of_state.bias[...] = bias if FAULT else bias + given["lstm.bias_ih_l0"][rows]
    model.head.kernel[...], model.head.bias[...] = given["head.weight"].T, given["head.bias"]
    return model


def inputs(rng):
    return rng.standard_normal((2, 6, 5)).astype(np.float32)
