"""Resizing: jax.image.resize smooths what it makes smaller, and its bicubic filter is another (jax 15768)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from torch import nn
from torch.nn import functional

FAULT = ""


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.middle, self.head = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, x):
        x = functional.interpolate(self.stem(x), size=(6, 6), mode="bilinear")
        x = functional.interpolate(self.middle(x), size=(9, 9), mode="bicubic")
        return self.head(x)


def bicubic_matrix(n_in, n_out, a=-0.75):
    """Keys's filter with PyTorch's constant, (n_out, n_in)."""
    at = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
    matrix = np.zeros((n_out, n_in))
    for k in range(-1, 3):
        place = np.floor(at).astype(int) + k
        d = np.abs(at - place)
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        np.add.at(matrix, (np.arange(n_out), place.clip(0, n_in - 1)), np.where(d <= 1, near, far))
    return matrix


class Port(nnx.Module):
    def __init__(self, rngs):
        self.stem, self.middle, self.head = (nnx.Conv(3, 3, (3, 3), padding=1, rngs=rngs) for _ in range(3))

    def __call__(self, x):
        n = x.shape[0]
        x = jax.image.resize(self.stem(x), (n, 6, 6, 3), "bilinear", antialias=FAULT == "antialias")
        x = self.middle(x)
        if FAULT == "bicubic":
            x = jax.image.resize(x, (n, 9, 9, 3), "bicubic")  # FAULT: bicubic
        else:
            x = jnp.einsum("ai,bj,nijc->nabc", bicubic_matrix(6, 9), bicubic_matrix(6, 9), x)
        return self.head(x)


def reference():
    return Reference()


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.standard_normal((2, 3, 14, 14)).astype(np.float32)
