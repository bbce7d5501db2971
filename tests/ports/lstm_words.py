"""A language model of a two-layer LSTM with dropout; the fault: layer 2 starts from layer 1's end."""

from flax import nnx
from torch import nn

FAULT = False
WORDS, WIDTH = 15, 8


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS)
        self.lstm = nn.LSTM(WIDTH, WIDTH, num_layers=2, batch_first=True, dropout=0.2)

    def forward(self, ids):
        y, _ = self.lstm(self.embed(ids))
        return self.head(y)


class Port(nnx.Module):
    def __init__(self, rngs):
        self.embed, self.head = nnx.Embed(WORDS, WIDTH, rngs=rngs), nnx.Linear(WIDTH, WORDS, rngs=rngs)
        self.first, self.second = (
            nnx.RNN(nnx.OptimizedLSTMCell(WIDTH, WIDTH, rngs=rngs), return_carry=True) for _ in range(2)
        )
        self.drop = nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, ids):
        carry, x = self.first(self.embed(ids))
        _, x = self.second(self.drop(x), initial_carry=carry if FAULT else None)
        return self.head(x)


def reference():
    return Reference()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.integers(0, WORDS, (2, 6))
