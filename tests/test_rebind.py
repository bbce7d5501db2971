"""Weights whose place neither their use nor their name tells: right ports are equal, wrong ones are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import lockstep

D, H = 6, 5


class Streams(nn.Module):
    """Computes the second stream first."""

    def __init__(self):
        super().__init__()
        self.value = nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, 1))
        self.advantage = nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, 3))

    def forward(self, x):
        a = self.advantage(x)
        return self.value(x) + a - a.mean(1, keepdim=True)


def streams(p, x):
    v, a = jnp.split(jax.nn.relu(x @ p["hidden"] + p["hidden_b"]), 2, -1)
    a = a @ p["a"] + p["a_b"]
    return v @ p["v"] + p["v_b"] + a - a.mean(-1, keepdims=True)


class Mixes(nn.Module):
    def __init__(self):
        super().__init__()
        for name in "kvr":
            setattr(self, f"mix_{name}", nn.Parameter(torch.rand(1, 1, D)))
        self.key, self.value, self.receptance = (nn.Linear(D, D, bias=False) for _ in range(3))

    def forward(self, x):
        k, v = self.key(x * self.mix_k), self.value(x * self.mix_v)
        return torch.sigmoid(self.receptance(x * self.mix_r)) * v * torch.exp(k)


def mixes(p, x):
    r, k, v = [x * mix for mix in p["mix"]]
    return jax.nn.sigmoid(r @ p["receptance"]) * (v @ p["value"]) * jnp.exp(k @ p["key"])


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(D, 3)
        self.w1, self.w2 = (
            nn.ModuleList(nn.Linear(a, b, bias=False) for _ in range(3)) for a, b in ((D, 8), (8, D))
        )

    def forward(self, x):
        chosen, out = self.gate(x).argmax(-1), torch.zeros_like(x)
        for i in range(3):
            token = torch.where(chosen == i)[0]
            out[token] = self.w2[i](self.w1[i](x[token]).relu())
        return out


def experts(p, x):
    hot = jax.nn.one_hot(jnp.argmax(x @ p["router"] + p["b"], -1), 3)
    h = jax.nn.relu(jnp.einsum("td,edh->teh", x, p["w1"]))
    return jnp.einsum("ted,te->td", jnp.einsum("teh,ehd->ted", h, p["w2"]), hot)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.LSTM(D, D, batch_first=True), nn.LSTMCell(D, D)

    def forward(self, x):
        _, (h, c) = self.encoder(x)
        return self.decoder(x[:, -1], (h[0], c[0]))[0]


class RecurrentPort(nnx.Module):
    def __init__(self):
        self.encoder, self.decoder = (nnx.OptimizedLSTMCell(D, D, rngs=nnx.Rngs(0)) for _ in range(2))

    def __call__(self, x):
        zero = jnp.zeros((x.shape[0], D), x.dtype)
        carry, _ = jax.lax.scan(self.encoder, (zero, zero), x.swapaxes(0, 1))
        return self.decoder(carry, x[:, -1])[1]


def function(call, **shapes):
    return lockstep.function(call, {name: np.zeros(shape) for name, shape in shapes.items()})


PORTS = {
    "two streams in one kernel, in another order": (
        *(Streams, (4, D)),
        lambda: function(streams, hidden=(D, 2 * H), hidden_b=2 * H, v=(H, 1), v_b=1, a=(H, 3), a_b=3),
    ),
    "three vectors in one stack, in another order": (
        *(Mixes, (3, 2, D)),
        lambda: function(mixes, mix=(3, D), receptance=(D, D), key=(D, D), value=(D, D)),
    ),
    "experts in a stack": (
        *(Experts, (9, D)),
        lambda: function(experts, router=(D, 3), b=3, w1=(3, D, 8), w2=(3, 8, D)),
    ),
    "two recurrent cells of one size": (Recurrent, (3, 4, D), RecurrentPort),
}


@pytest.mark.parametrize("name", PORTS)
def test_a_right_port_is_equal(name, rng):
    reference, shape, port = PORTS[name]
    torch.manual_seed(0)
    result = lockstep.compare(reference(), port(), rng.normal(size=shape).astype(np.float32))
    assert result.equal, result


def test_weights_that_are_exchanged_against_their_names_differ(rng):
    def exchanged(p, x):
        return jax.nn.sigmoid(x @ p["value"]) * (x @ p["gate"])

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.value = nn.Linear(D, D, bias=False), nn.Linear(D, D, bias=False)

        def forward(self, x):
            return torch.sigmoid(self.gate(x)) * self.value(x)

    port = function(exchanged, gate=(D, D), value=(D, D))
    assert not lockstep.compare(Gated(), port, rng.normal(size=(4, D)).astype(np.float32)).equal


def test_a_row_and_later_its_whole_table_are_bound_as_one(rng):
    """The port starts with another token; its row is met before the table."""

    class Start(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.fc = nn.Embedding(5, D), nn.Linear(D, D)

        def forward(self, x):
            start = torch.tanh(self.fc(self.embed(torch.zeros(len(x), dtype=torch.long))))
            return torch.tanh(self.fc(self.embed(x)) + start)

    def port(start):
        def call(p, x):
            h = jnp.tanh(p["emb"][jnp.full(len(x), start)] @ p["w"] + p["b"])
            return jnp.tanh(p["emb"][x] @ p["w"] + p["b"] + h)

        return function(call, w=(D, D), b=D, emb=(5, D))

    tokens = np.array([3, 1, 0, 2])
    assert lockstep.compare(Start(), port(0), tokens).equal
    assert not lockstep.compare(Start(), port(1), tokens, backward=False).equal
