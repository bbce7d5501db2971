"""The canonical checkpoint: one file, which either framework writes and either can go on from.

A safetensors file. Tensors: every parameter and running statistic by its canonical name (kernels OIHW,
running variances unbiased, as PyTorch keeps them), the momentum of each parameter as ``momentum/NAME``, the
averaged parameters and statistics as ``average/NAME`` where the recipe has EMA, and ``losses``, float64,
the training loss of every step so far, or of none in a published model. Metadata: ``lockstep``, JSON with
the step, the run's config and one object per epoch so far; ``sha256``, over everything else. A run's whole
state is in this one file, so that one atomic write moves a run from one epoch to the next.
"""

import hashlib
import json
import os
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from recipe.console import UserError
from recipe.networks import Network, get_network
from recipe.random_numbers import initial_weights
from recipe.recipes import PRECISIONS, Recipe
from recipe.rounding import STATE, round_to_grid


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that after a crash is either the old one or the new one, whole.

    Raises:
        UserError: it cannot be written (disk full, no permission); the old file is untouched.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException as error:  # Ctrl-C too
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; nothing there was changed"
        ) from error
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a renaming in a folder outlast a power cut; without it, the old file may be back afterwards."""
    with suppress(OSError):  # some file systems and some folders do not allow it; the file is whole
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_leftovers(path: Path) -> None:
    """Remove what `write_atomically` left beside a file when its process was killed.

    Call this only while holding the folder's lock: another process may still be writing its temporary file.

    Raises:
        OSError: they cannot be removed.
    """
    for leftover in path.parent.glob(f".{path.name}.????????"):  # as tempfile names them
        leftover.unlink(missing_ok=True)


def read_at_most(path: Path, limit: int) -> bytes:
    """A file's first ``limit + 1`` bytes: more than ``limit`` means that the file is too large.

    Raises:
        OSError: it cannot be read, or is no regular file: a pipe may never answer, and a device has no end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is no regular file")
    with path.open("rb") as file:
        return file.read(limit + 1)


FILE_NAME = "checkpoint.safetensors"
MAX_BYTES = (
    64 * 2**20
)  # at most a million parameters, four numbers each; the losses of MAX_STEPS steps are half
MAX_HEADER_BYTES = 4 * 2**20  # the metrics of MAX_EPOCHS epochs need less
METRICS = frozenset(
    ("epoch", "step", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds", "digest")
)

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Checkpoint:
    """A run after ``step`` steps."""

    step: int
    tensors: Tensors  # parameters, statistics, momentum/..., average/...; all float32 or all float64
    losses: np.ndarray  # float64 (step,); of a published model (0,)
    metrics: list[dict[str, Any]]  # one per epoch
    config: dict[str, Any]  # as in config.json

    @property
    def network(self) -> Network:
        """The network that was trained."""
        return get_network(self.config["network"])

    def has_whole_metrics(self) -> bool:
        """Whether there are metrics up to the last step, and each entry is complete."""
        return (
            bool(self.metrics)
            and all(entry.keys() >= METRICS for entry in self.metrics)
            and self.metrics[-1]["step"] == self.step
        )

    def check_config(self, *keys: str) -> None:
        """Check that the config has these keys; ``data.name`` is the key ``name`` inside of ``data``.

        Raises:
            UserError: naming what is missing.
        """
        for key in keys:
            part: Any = self.config
            for name in key.split("."):
                if name not in part:
                    raise UserError(f"the checkpoint's config lacks {key}; use one that a training run wrote")
                part = part[name]

    @property
    def model(self) -> Tensors:
        """The parameters and statistics that are the model: the averaged ones where there are any."""
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


def initial_tensors(network: Network, recipe: Recipe, seed: int, precision: str) -> Tensors:
    """The state before the first step, in the type of the precision's weights and on its grid."""
    chosen = PRECISIONS[precision]
    weights = initial_weights(network, seed)
    shapes = tensor_shapes(network, averaged=recipe.ema_decay is not None)
    start = {
        name: np.zeros(shape) if name.startswith("momentum/") else weights[name.removeprefix("average/")]
        for name, shape in shapes.items()
    }
    if chosen.on_grid:
        start = {name: round_to_grid(tensor, STATE) for name, tensor in start.items()}
    return {name: tensor.astype(chosen.dtype) for name, tensor in start.items()}


def state_digest(tensors: Tensors) -> str:
    """SHA-256, in hex, over name, type, shape and bytes of every tensor of a state, in the order of names."""
    return _digest(tensors, "")


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
    about = json.dumps({"step": checkpoint.step, "metrics": checkpoint.metrics, "config": checkpoint.config})
    write_atomically(path, save(tensors, {"lockstep": about, "sha256": _digest(tensors, about)}))


def find_checkpoint(run: Path) -> Path:
    """The checkpoint that a person means: the file itself, or the one in a run's folder."""
    with suppress(OSError):  # such as a name that is too long; `load_checkpoint` says what is wrong
        if run.is_dir():
            return run / FILE_NAME
    return run


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and verify all of it.

    Raises:
        UserError: missing, truncated, altered, or not one of ours.
    """
    try:
        content = read_at_most(path, MAX_BYTES)  # not mapped, since a mapped file may shrink under us
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}") from None
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror or error}") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} is no Lockstep checkpoint: it is larger than {MAX_BYTES >> 20} MiB")
    header_bytes = int.from_bytes(content[:8], "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise UserError(
            f"{path} is no Lockstep checkpoint: it says that its header has {header_bytes:,} bytes"
        )
    try:
        tensors = load(content)
        metadata = json.loads(content[8 : 8 + header_bytes])["__metadata__"]
        about = metadata["lockstep"]
        state = json.loads(about)
        step, metrics, config = state["step"], state["metrics"], state["config"]
        network = get_network(config["network"])
    except SafetensorError as error:
        raise UserError(f"{path} is no whole safetensors file ({error}); use another checkpoint") from None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is a safetensors file but no Lockstep checkpoint") from None
    if metadata.get("sha256") != _digest(tensors, about):
        raise UserError(
            f"{path} was altered after it was written: its SHA-256 does not match; use another one"
        )
    losses = tensors.pop("losses", np.empty(0))
    expected = tensor_shapes(network, averaged=any(name.startswith("average/") for name in tensors))
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    dtypes = {str(tensor.dtype) for tensor in tensors.values()}
    if (
        shapes != expected
        or dtypes not in ({"float32"}, {"float64"})
        or type(step) is not int
        or losses.shape not in ((step,), (0,))
        or losses.dtype != np.float64
        or not _are_metrics(metrics, step)
        or not _is_config(config)
    ):
        raise UserError(f"{path} does not hold what a checkpoint of {network.name} holds; use another one")
    return Checkpoint(step, tensors, losses, metrics, config)


def _are_metrics(metrics: Any, step: int) -> bool:
    """Whether the metrics have only possible values; the code that reads them relies on it."""
    return isinstance(metrics, list) and all(
        isinstance(entry, dict)
        and all(
            type(entry.get(key, 0)) is int and 0 <= entry.get(key, 0) <= step for key in ("epoch", "step")
        )
        and type(entry.get("digest", "")) is str
        and all(type(value) in (int, float) for key, value in entry.items() if key != "digest")
        and all(0 <= entry.get(key, 0) <= 1 for key in ("train_accuracy", "val_accuracy"))
        and all(0 <= entry.get(key, 0) < 1e9 for key in ("lr", "seconds"))
        and all(
            abs(entry.get(key, 0)) < 1e9 or type(entry[key]) is float for key in ("train_loss", "val_loss")
        )
        for entry in metrics
    )


def _is_config(config: dict[str, Any]) -> bool:
    """Whether the settings that other code reads have the right types, if they are there."""
    data, recipe, versions = (config.get(key, {}) for key in ("data", "recipe", "versions"))
    if not all(isinstance(part, dict) for part in (data, recipe, versions)):
        return False
    texts = (
        *(config.get(key, "") for key in ("framework", "precision", "split")),
        *(data.get(key, "") for key in ("name", "fingerprint")),
        *versions.values(),
        recipe.get("name", ""),
    )
    return type(config.get("seed", 0)) is int and all(isinstance(text, str) for text in texts)
