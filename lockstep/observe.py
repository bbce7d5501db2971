"""What both sides record of a model: its leaf calls, and how far two arrays are apart."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lockstep.runs import relative_difference

RELATIVE = 1e-10  # float64: two numbers are equal or different
NOISE = 10  # float32: how many times the noise floor a difference may be
SMALL = 1e-3  # gradients that cancel to nothing are measured against this part of what went in


@dataclass
class Call:
    """One call of a leaf: a module that calls no other module."""

    path: str
    kind: str
    module: Any
    inputs: list[np.ndarray]
    outputs: list[np.ndarray]
    gradients: list[np.ndarray | None] = field(default_factory=list)  # of the objective, by each output
    statistics: dict[str, np.ndarray] = field(default_factory=dict)  # before the call
    statistics_after: dict[str, np.ndarray] = field(default_factory=dict)
    arguments: tuple[tuple, dict] = ((), {})
    number: int = 0  # how many calls of the same module came before


@dataclass
class Local:
    """A leaf by itself: its outputs, and the gradients of their inner product with given cotangents."""

    outputs: list[np.ndarray]
    inputs: list[np.ndarray | None]
    parameters: dict[Any, np.ndarray]
    statistics: dict[Any, np.ndarray]


@dataclass
class Recording:
    """One forward and backward pass."""

    calls: list[Call]
    outputs: dict[str, np.ndarray]
    objective: float = 0.0  # the loss, or the inner product of the outputs with fixed random numbers
    gradients: dict[Any, np.ndarray] = field(default_factory=dict)  # by parameter
    output_gradients: dict[str, np.ndarray] = field(default_factory=dict)  # by the model's outputs
    stopped: str = ""  # why the forward pass ended early


def difference(array: np.ndarray, reference: np.ndarray, scale: float = 0.0) -> float:
    """Norm of the difference over the norm of the reference, or over ``scale`` if that is larger.

    Infinite if shapes differ or a number is finite in one only; equal infinities and NaN are equal.
    """
    if array.shape != reference.shape:
        return np.inf
    array, reference = array.astype(np.float64), reference.astype(np.float64)
    finite = np.isfinite(array) & np.isfinite(reference)
    if not finite.all():
        if not np.array_equal(array[~finite], reference[~finite], equal_nan=True):
            return np.inf
        array, reference = array[finite], reference[finite]
    size = np.linalg.norm(reference.ravel())
    if scale > size:
        return float(np.linalg.norm((array - reference).ravel()) / scale)
    return relative_difference(array, reference)


def largest(differences: list[float]) -> float:
    """The largest, 0 if there is none."""
    return max(differences, default=0.0)


def cotangent(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Fixed random numbers of a shape in PyTorch's layout, to multiply an output with."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def labelled(value: Any, is_array: Any, label: str = "") -> dict[str, Any]:
    """The arrays within tuples, lists, dictionaries and objects with fields, by where they are."""
    if is_array(value):
        return {label: value}
    if hasattr(value, "items"):
        items: Any = sorted(value.items())
    elif isinstance(value, tuple | list):
        items = enumerate(value)
    elif hasattr(value, "__dataclass_fields__"):
        items = ((name, getattr(value, name)) for name in value.__dataclass_fields__)
    else:
        return {}
    found: dict[str, Any] = {}
    for key, part in items:
        found |= labelled(
            part, is_array, f"{label}[{key!r}]" if not isinstance(key, int) else f"{label}[{key}]"
        )
    return found
