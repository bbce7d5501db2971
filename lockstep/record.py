"""A reference's run in a file: written where the reference can run, compared where only the port can."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lockstep.adapters import is_array
from lockstep.errors import UserError
from lockstep.gradients import cotangents
from lockstep.outputs import labelled
from lockstep.steps import Step, reference_steps
from lockstep.trace import Binding, Edit, Gradients, Leaf, Model, Node, Rounded, Site, Trace

FORMAT = "lockstep trace 1"
HOW = "write it with python -m lockstep record"
CLASSES = {c.__name__: c for c in (Binding, Gradients, Leaf, Node, Rounded, Site, Step, Trace)}


@dataclasses.dataclass
class Recorded:
    """A recorded reference as one side of a comparison: a `Model` that answers from what was stored.

    Attributes:
        inputs: of the run, by label.
        run: what its `Model.trace` gave.
        backward: what `Model.gradients` gave with the weights of the run and with those that the model had.
        single: what `Model.rounded` gave.
        steps: training steps, if it has an optimizer.
    """

    everything = True  # that was kept; no field, because it is the same in every file

    inputs: dict[str, np.ndarray]
    run: Trace
    backward: list[Gradients]
    single: Rounded
    steps: list[Step]

    @property
    def framework(self) -> str:
        """That of the model that was recorded."""
        return self.run.framework

    def trace(
        self,
        reference: Trace | None = None,
        weights: np.ndarray | None = None,
        replace: Mapping[int, np.ndarray] | None = None,
        before: Trace | None = None,
    ) -> Trace:
        """See `Model.trace`; nothing else can be run, so a port must be a live model."""
        if reference is not None:
            raise UserError("a recorded trace can only be the reference; record the other side, or run both")
        return self.run

    def replay(
        self,
        trace: Trace,
        changed: Mapping[int, np.ndarray],
        edits: Mapping[int, Edit] | None = None,
        until: int | None = None,
    ) -> dict[int, np.ndarray]:
        """See `Model.replay`; nothing is computed again."""
        return {}

    def gradients(
        self, weights: np.ndarray, cotangents: Mapping[str, np.ndarray], without: str = ""
    ) -> Gradients:
        """See `Model.gradients`."""
        return self.backward[0 if np.array_equal(weights, self.run.weights) else -1]

    def rounded(self, weights: np.ndarray) -> Rounded:
        """See `Model.rounded`."""
        return self.single


def record(model: Model, inputs: tuple[tuple, dict], optimizer: Any, steps: int) -> Recorded:
    """Run a reference once with all that a comparison asks of it.

    Args:
        model: the reference.
        inputs: as it takes them.
        optimizer: as `steps.compare_steps` takes the reference's; None: no training steps.
        steps: how many.
    """
    model.everything = True  # nothing can be run again later
    run = model.trace()
    factors = cotangents(run)
    weights = [run.weights] if np.array_equal(run.weights, run.given) else [run.weights, run.given]
    backward = [model.gradients(numbers, factors) for numbers in weights]
    trained = list(reference_steps(model, run, optimizer, factors, steps)) if optimizer is not None else []
    return Recorded(labelled(inputs, is_array), run, backward, model.rounded(run.weights), trained)


def write(path: Path, recorded: Recorded) -> None:
    """Write a recorded reference as one safetensors file; another file of the name is replaced at once.

    Raises:
        UserError: the file cannot be written.
    """
    tensors: dict[str, np.ndarray] = {}
    content = json.dumps([_pack(getattr(recorded, f.name), tensors) for f in dataclasses.fields(recorded)])
    metadata = {"format": FORMAT, "content": content, "sha256": _digest(content, tensors)}
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(save(tensors, metadata))
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def read(path: Path, inputs: tuple[tuple, dict]) -> Recorded:
    """Read what `write` wrote.

    Raises:
        UserError: the file is missing, something else, damaged, or of a run on other inputs.
    """
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dictionary
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as a recorded trace ({error}); {HOW}") from error
    content = metadata.get("content", "")
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} is no recorded trace of this version of Lockstep; {HOW}")
    if metadata.get("sha256") != _digest(content, tensors):
        raise UserError(f"{path} is damaged: its content is not what was written; {HOW} again")
    recorded = Recorded(*(_unpack(x, tensors) for x in json.loads(content)))
    given = labelled(inputs, is_array)
    if given.keys() != recorded.inputs.keys() or not all(
        np.array_equal(x, recorded.inputs[label], equal_nan=x.dtype.kind in "fc")
        for label, x in given.items()
    ):
        raise UserError(f"{path} was recorded on other inputs; give the same inputs and --seed")
    return recorded


def _digest(content: str, tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(content.encode())
    for name in sorted(tensors):
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()


def _pack(x: Any, tensors: dict[str, np.ndarray]) -> Any:
    """A value as JSON; arrays go to ``tensors``."""
    if isinstance(x, np.ndarray):
        if x.dtype.kind == "V":  # bfloat16, which NumPy alone does not know
            x = x.astype(np.float32)
        name, kind = str(len(tensors)), "complex" if x.dtype.kind == "c" else "array"
        if kind == "complex":
            x = np.stack([x.real, x.imag], -1).astype(np.float64)
        tensors[name] = np.ascontiguousarray(x).reshape(x.shape)
        return {kind: name}
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return {type(x).__name__: [_pack(getattr(x, f.name), tensors) for f in dataclasses.fields(x)]}
    if isinstance(x, Mapping):
        return {"map": [[_pack(key, tensors), _pack(value, tensors)] for key, value in x.items()]}
    if isinstance(x, list | tuple):
        return {type(x).__name__: [_pack(value, tensors) for value in x]}
    return x.item() if isinstance(x, np.generic) else x


def _unpack(x: Any, tensors: Mapping[str, np.ndarray]) -> Any:
    """What `_pack` packed."""
    if not isinstance(x, dict):
        return x
    ((kind, content),) = x.items()
    if kind == "array":
        return tensors[content]
    if kind == "complex":
        return tensors[content][..., 0] + 1j * tensors[content][..., 1]
    if kind == "map":
        return {_unpack(key, tensors): _unpack(value, tensors) for key, value in content}
    values = [_unpack(value, tensors) for value in content]
    return CLASSES[kind](*values) if kind in CLASSES else tuple(values) if kind == "tuple" else values
