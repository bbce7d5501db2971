"""Checkpoints, and files that are never half-written.

A checkpoint is one safetensors file, which either framework writes and either can go on from. Tensors: every
parameter and running statistic by its canonical name (kernels OIHW, running variances unbiased, as PyTorch
keeps them), the momentum of each parameter as ``momentum/NAME``, the averaged parameters and statistics as
``average/NAME`` where the recipe has EMA, and ``losses``, float64, the training loss of every step so far, or
of none in a published model. Metadata: ``lockstep``, JSON with the step, the run's config and one object per
epoch so far; ``sha256``, over everything else. A run's whole state is in this one file, so that one atomic
write moves a run from one epoch to the next.
"""

import hashlib
import json
import os
import stat
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from recipe.console import UserError, reason
from recipe.networks import Network, get_network
from recipe.random_numbers import initial_weights
from recipe.recipes import PRECISIONS, Precision, Recipe
from recipe.rounding import STATE, round_to_grid

FILE_NAME = "checkpoint.safetensors"
# At most a million parameters, four numbers each; the losses of `recipe.run.MAX_STEPS` steps are half.
MAX_BYTES = 64 * 2**20
MAX_HEADER_BYTES = 4 * 2**20  # the metrics of `recipe.run.MAX_EPOCHS` epochs need less

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Images:
    """The images that a run was trained on."""

    name: Literal["mnist", "digits"]
    fingerprint: str  # see `recipe.data.fingerprint`


@dataclass(frozen=True)
class Config:
    """A run, with everything resolved: ``config.json``, and a part of every checkpoint."""

    framework: str
    network: str
    recipe: Recipe
    seed: int
    precision: Precision
    split: Literal["test", "holdout"]
    data: Images
    data_note: str | None
    devices: int
    max_steps: int | None
    resumed_from: str | None
    started: str
    machine: dict[str, Any]
    command: str
    commit: str | None
    date: str
    versions: dict[str, str]
    device: str
    threads: int


@dataclass(frozen=True)
class Epoch:
    """The metrics of an epoch; accuracies are 0 to 1."""

    epoch: int
    step: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float
    digest: str  # of the state, see `state_digest`


@dataclass(frozen=True)
class _About:
    """The JSON in a checkpoint."""

    step: int
    metrics: list[Epoch]
    config: Config


@dataclass(frozen=True)
class Checkpoint:
    """A run after ``step`` steps."""

    step: int
    tensors: Tensors  # parameters, statistics, momentum/..., average/...; all float32 or all float64
    losses: np.ndarray  # float64 (step,); of a published model (0,)
    metrics: list[Epoch]
    config: Config

    @property
    def network(self) -> Network:
        """The network that was trained."""
        return get_network(self.config.network)

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


def initial_tensors(network: Network, recipe: Recipe, seed: int, precision: Precision) -> Tensors:
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
        little_endian = tensor.astype(tensor.dtype.newbyteorder("<"), copy=False)  # whatever the processor is
        digest.update(little_endian.tobytes())
    return digest.hexdigest()


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically.

    Raises:
        UserError: it cannot be written.
    """
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in checkpoint.tensors.items()}
    tensors["losses"] = checkpoint.losses
    about = json.dumps(asdict(_About(checkpoint.step, checkpoint.metrics, checkpoint.config)))
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
    if sys.byteorder != "little":
        raise UserError(f"cannot read {path}: safetensors does not swap bytes on a big-endian processor")
    try:
        content = read_at_most(path, MAX_BYTES)  # not mapped, since a mapped file may shrink under us
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}; give a run's folder or its {FILE_NAME}") from None
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror or error}") from None
    header_bytes = int.from_bytes(content[:8], "little")
    if len(content) > MAX_BYTES or header_bytes > MAX_HEADER_BYTES:
        why = ": it is larger than one can be" if len(content) > MAX_BYTES else ""
        raise UserError(f"{path} is not a checkpoint{why}; give a run's folder or its {FILE_NAME}")
    try:
        tensors = load(content)
        metadata = json.loads(content[8 : 8 + header_bytes])["__metadata__"]
        about, digest = metadata["lockstep"], metadata["sha256"]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a whole checkpoint ({reason(error)}); use another one") from None
    if digest != _digest(tensors, about):
        raise UserError(
            f"{path} was altered after it was written: its SHA-256 does not match; use another one"
        )
    try:
        state: _About = read_typed(_About, json.loads(about))
        network = get_network(state.config.network)
        losses = tensors.pop("losses", np.empty(0))
        _check_tensors(tensors, losses, network, state.step)
    except (ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is not what this version writes: {reason(error)}; use another one") from None
    return Checkpoint(state.step, tensors, losses, state.metrics, state.config)


def _check_tensors(tensors: Tensors, losses: np.ndarray, network: Network, step: int) -> None:
    expected = tensor_shapes(network, averaged=any(name.startswith("average/") for name in tensors))
    if {name: tensor.shape for name, tensor in tensors.items()} != expected:
        raise ValueError(f"its tensors are not those of {network.name}")
    if {str(tensor.dtype) for tensor in tensors.values()} not in ({"float32"}, {"float64"}):
        raise ValueError("its tensors are not all float32 or all float64")
    if losses.shape not in ((step,), (0,)) or losses.dtype != np.float64:
        raise ValueError("its losses are not those of its steps")


def read_typed(kind: Any, value: Any, name: str = "") -> Any:
    """Return a value from JSON as its annotation says: a dataclass, list, dict, union, literal or plain type.

    Raises:
        ValueError: it is something else, or a dataclass has more keys or fewer; says where.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, dict):
        hints = get_type_hints(kind)
        if other := hints.keys() ^ value.keys():
            raise ValueError(f"{name.lstrip('.') or 'it'} has other keys: {', '.join(sorted(other))}")
        return kind(**{key: read_typed(hint, value[key], f"{name}.{key}") for key, hint in hints.items()})
    if origin is list and isinstance(value, list):
        return [read_typed(arguments[0], item, f"{name}[{index}]") for index, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: read_typed(arguments[1], item, f"{name}.{key}") for key, item in value.items()}
    if origin in (Union, UnionType):  # X | None
        return None if value is None else read_typed(arguments[0], value, name)
    if kind is float and type(value) is int:
        return float(value)
    if kind is Any or type(value) is kind or (origin is Literal and value in arguments):
        return value
    raise ValueError(f"{name.lstrip('.')} is {str(value)[:100]!r}")


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
