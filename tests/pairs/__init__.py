"""Pairs of models for `lockstep.compare`, and faults to put into the Flax side.

Each file is what ``python -m lockstep pair.py`` takes. Its FAULTS say what must be found for each fault.
"""

from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx


@dataclass(frozen=True)
class Fault:
    """What a comparison must find.

    Attributes:
        module: path of the reference's module; a line of the file that names the fault is as good.
        cause: regular expression of `Difference.cause`, or of a note where the fault is no difference.
        options: of `lockstep.compare`.
    """

    module: str
    cause: str
    options: dict[str, Any] = field(default_factory=dict)


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random scales, biases and statistics: with PyTorch's first values (1 and 0) many faults do not show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if "running_var" in name:
                tensor.copy_(noise.abs() + 0.5)
            elif tensor.ndim < 2:
                tensor.copy_(0.2 * noise + ("weight" in name))
            else:
                tensor.copy_(noise / tensor[0].numel() ** 0.5)
    return model


class TorchBatchNorm(nnx.BatchNorm):
    """Batch norm whose running variance is unbiased, as PyTorch's."""

    def __call__(self, x, use_running_average=None, **kwargs):
        old = self.var[...]
        y = super().__call__(x, use_running_average, **kwargs)
        running = self.use_running_average if use_running_average is None else use_running_average
        if not running:
            n = x.size // x.shape[-1]
            biased = (self.var[...] - self.momentum * old) / (1 - self.momentum)
            self.var[...] = self.momentum * old + (1 - self.momentum) * biased * n / (n - 1)
        return y


def images(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def identity(x: jnp.ndarray) -> jnp.ndarray:
    return x
