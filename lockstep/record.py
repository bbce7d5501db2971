"""A reference's trace in a file: written where the reference runs, compared where only the port does."""

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

from lockstep.errors import UserError
from lockstep.steps import Step
from lockstep.trace import Binding, Edit, Gradients, Leaf, Node, Rounded, Site, Trace

FORMAT = "lockstep trace 1"
HOW = "write it with python -m lockstep record"
CLASSES = {c.__name__: c for c in (Binding, Gradients, Leaf, Node, Rounded, Site, Step, Trace)}


@dataclasses.dataclass
class Recorded:
    """A recorded reference as one side of a comparison: a `Model` that answers from what was stored.

    Attributes:
        inputs: of the run, by label.
        recorded: what its `Model.trace` gave.
        backward: what `Model.gradients` gave; None: nothing was recorded.
        single: what `Model.rounded` gave; None: nothing was recorded.
        steps: training steps, as many as were recorded.
    """

    inputs: dict[str, np.ndarray]
    recorded: Trace
    backward: Gradients | None = None
    single: Rounded | None = None
    steps: list[Step] = dataclasses.field(default_factory=list)

    @property
    def framework(self) -> str:
        """That of the model which was recorded."""
        return self.recorded.framework

    def trace(
        self,
        reference: Trace | None = None,
        weights: np.ndarray | None = None,
        replace: Mapping[int, np.ndarray] | None = None,
        edits: Mapping[int, Edit] | None = None,
    ) -> Trace:
        """The recorded trace; nothing else can be run."""
        return self.recorded

    def gradients(
        self, weights: np.ndarray, cotangents: Mapping[str, np.ndarray], nodes: tuple[int, ...] = ()
    ) -> Gradients:
        """The recorded gradients of the weights."""
        if self.backward is None:
            raise UserError("no gradients were recorded; record again without --no-backward")
        return self.backward

    def rounded(self, weights: np.ndarray) -> Rounded:
        """The recorded outputs in float32."""
        if self.single is None:
            raise UserError("no float32 was recorded; record again without --no-float32")
        return self.single

    def check_inputs(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Refuse to compare a run on other inputs.

        Raises:
            UserError: they are not those that were recorded.
        """
        same = inputs.keys() == self.inputs.keys() and all(
            np.array_equal(x, self.inputs[label], equal_nan=x.dtype.kind in "fc")
            for label, x in inputs.items()
        )
        if not same:
            raise UserError("the reference was recorded on other inputs; give the same inputs and --seed")


def write(path: Path, recorded: Recorded) -> None:
    """Write a recorded reference as one safetensors file; another file of the name is replaced at once.

    Raises:
        UserError: the file cannot be written.
    """
    tensors: dict[str, np.ndarray] = {}
    content = json.dumps(
        {f.name: _pack(getattr(recorded, f.name), tensors) for f in dataclasses.fields(recorded)}
    )
    metadata = {"format": FORMAT, "content": content, "sha256": _digest(content, tensors)}
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(save(tensors, metadata))
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def read(path: Path) -> Recorded:
    """Read what `write` wrote.

    Raises:
        UserError: the file is missing, something else, or damaged.
    """
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dictionary
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as a recorded trace ({error}); {HOW}") from error
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} is no recorded trace of this version of Lockstep; {HOW}")
    content = metadata.get("content", "")
    if metadata.get("sha256") != _digest(content, tensors):
        raise UserError(f"{path} is damaged: its SHA-256 is not that of its content; {HOW}")
    return Recorded(**{name: _unpack(x, tensors) for name, x in json.loads(content).items()})


def _digest(content: str, tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(content.encode())
    for name in sorted(tensors):
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()


def _pack(x: Any, tensors: dict[str, np.ndarray]) -> Any:
    """A value as JSON; arrays go to ``tensors``."""
    if isinstance(x, np.ndarray):
        name = str(len(tensors))
        if x.dtype.kind == "V":  # bfloat16, which NumPy alone does not know
            x = x.astype(np.float32)
        is_complex = x.dtype.kind == "c"
        x = (
            np.ascontiguousarray(x.astype(np.complex128)).view(np.float64).reshape(*x.shape, 2)
            if is_complex
            else x
        )
        tensors[name] = np.ascontiguousarray(x).reshape(x.shape)
        return {"complex" if is_complex else "array": name}
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
        return np.ascontiguousarray(tensors[content]).view(np.complex128)[..., 0]
    if kind == "map":
        return {_unpack(key, tensors): _unpack(value, tensors) for key, value in content}
    values = [_unpack(value, tensors) for value in content]
    return CLASSES[kind](*values) if kind in CLASSES else tuple(values) if kind == "tuple" else values
