"""A bidirectional LSTM over padded sequences (flax 2170); the faulty port ignores their lengths."""

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

FAULT = False


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(5, 4, batch_first=True, bidirectional=True), nn.Linear(8, 3)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=x.shape[1])
        keep = (torch.arange(x.shape[1])[None] < lengths[:, None])[..., None]
        return self.head((y * keep).sum(1) / lengths[:, None])


class Port(nnx.Module):
    def __init__(self, rngs):
        cells = [nnx.RNN(nnx.OptimizedLSTMCell(5, 4, rngs=rngs)) for _ in range(2)]
        self.lstm, self.head = nnx.Bidirectional(*cells), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x, lengths):
        y = self.lstm(x, seq_lengths=None if FAULT else lengths)
        keep = (jnp.arange(x.shape[1])[None] < lengths[:, None])[..., None]
        return self.head((y * keep).sum(1) / lengths[:, None])


def reference():
    return Reference()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.standard_normal((3, 6, 5)).astype(np.float32), np.array([6, 3, 4])
