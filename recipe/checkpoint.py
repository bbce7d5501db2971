"""The canonical checkpoint: one file that either framework writes and either goes on from.

A safetensors file. Tensors: every parameter and running statistic by its canonical name (kernels OIHW,
running variances unbiased, as PyTorch keeps them), the momentum of each parameter as ``momentum/NAME``, the
averaged parameters and statistics as ``average/NAME`` where the recipe has EMA, and ``losses``, float64,
the training loss of every step so far. Metadata: ``lockstep``, JSON with the step, the run's config and one
object per epoch so far; ``sha256``, over everything else. A run's whole state is in this one file, so that
one atomic write moves a run from one epoch to the next.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from recipe.errors import UserError
from recipe.files import write_atomically
from recipe.networks import Network, get_network

FILE_NAME = "checkpoint.safetensors"
MAX_BYTES = 64 * 2**20  # a header that claims more is lying: the networks have 10,000 parameters

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Checkpoint:
    """A run after ``step`` steps."""

    step: int
    tensors: Tensors  # parameters, statistics, momentum/..., average/...; all float32 or all float64
    losses: np.ndarray  # float64 (step,)
    metrics: list[dict[str, Any]]  # one per epoch
    config: dict[str, Any]  # as in config.json

    @property
    def network(self) -> Network:
        """The network it is of."""
        return get_network(self.config["network"])

    @property
    def model(self) -> Tensors:
        """Parameters and statistics that stand for the model: averaged ones where there are any."""
        names = [*self.network.parameters, *self.network.buffers]
        prefix = "average/" if f"average/{names[0]}" in self.tensors else ""
        return {name: self.tensors[prefix + name] for name in names}


def tensor_shapes(network: Network, averaged: bool) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this network holds, ``losses`` aside."""
    model = network.parameters | network.buffers
    return (
        model
        | {f"momentum/{name}": shape for name, shape in network.parameters.items()}
        | ({f"average/{name}": shape for name, shape in model.items()} if averaged else {})
    )


def _digest(tensors: Tensors, metadata: str) -> str:
    digest = hashlib.sha256(metadata.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tensor.shape};".encode())
        digest.update(np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically.

    Raises:
        UserError: it cannot be written.
    """
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in checkpoint.tensors.items()}
    tensors["losses"] = checkpoint.losses
    about = json.dumps(
        {"step": checkpoint.step, "metrics": checkpoint.metrics, "config": checkpoint.config}, sort_keys=True
    )
    write_atomically(path, save(tensors, {"lockstep": about, "sha256": _digest(tensors, about)}))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and verify all of it.

    Raises:
        UserError: missing, truncated, altered, or not one of ours.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} is no Lockstep checkpoint: it is larger than {MAX_BYTES >> 20} MiB")
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        about = metadata["lockstep"]
        content = json.loads(about)
        step, metrics, config = content["step"], content["metrics"], content["config"]
        network = get_network(config["network"])
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}") from None
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise UserError(f"{path} is no whole safetensors file ({error}); use another checkpoint") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is a safetensors file but no Lockstep checkpoint") from None
    if metadata.get("sha256") != _digest(tensors, about):
        raise UserError(
            f"{path} was altered after it was written: its SHA-256 does not match; use another one"
        )
    losses = tensors.pop("losses", np.empty(0))
    wanted = tensor_shapes(network, averaged=any(name.startswith("average/") for name in tensors))
    found = {name: tensor.shape for name, tensor in tensors.items()}
    dtypes = {str(tensor.dtype) for tensor in tensors.values()}
    if (
        found != wanted
        or dtypes not in ({"float32"}, {"float64"})
        or not isinstance(step, int)
        or losses.shape != (step,)
    ):
        raise UserError(f"{path} does not hold what a checkpoint of {network.name} holds; use another one")
    return Checkpoint(step, tensors, losses, metrics, config)
