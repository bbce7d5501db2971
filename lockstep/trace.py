"""A model's run as data: operations, what flows between them, and where its weights are used.

A `Trace` holds NumPy arrays, strings and numbers only, so it can be written to a file and compared later,
without the model or its framework. What needs the model, a second run or gradients, is behind `Model`.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

Source = tuple[str, int]  # file and line
KEPT = 2**21  # numbers: a larger array is fingerprinted, and its values are not kept
MANY, SMALL = 2**25, 2**14  # numbers that a first pass keeps of all values; a smaller array is always kept


@dataclass
class Leaf:
    """A parameter, buffer or variable: numbers ``start`` to ``stop`` of `Trace.weights`."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    node: int
    trainable: bool = True
    constant: bool = False  # a table that belongs to the model, never overwritten by the other side's


@dataclass
class Node:
    """One value of a run: the result of an operation, or a leaf, an input or a constant."""

    id: int
    op: str  # ATen's, the primitive's or ONNX's name; else the name of the leaf or input
    kind: str  # operation, structure (moves numbers only), parameter, input or constant
    inputs: tuple[int, ...]  # nodes
    shape: tuple[int, ...]
    dtype: str
    sources: tuple[Source, ...] = ()  # lines of the user's code, innermost first
    module: str = ""  # path of the module that computes it
    fingerprint: np.ndarray | None = None  # `values.fingerprint`; None: constant, empty or no numbers
    scalar: float | None = None  # an array of one repeated number is known by that number
    params: dict[str, Any] = field(default_factory=dict)  # settings: numbers, strings and lists of them
    data: bool = False  # depends on the inputs
    weighted: bool = False  # depends on weights or on inputs that are not integers
    image: bool = False  # only numbers of leaves, moved
    contraction: int | None = None  # the site of the contraction whose result this is, moved at most


@dataclass
class Site:
    """The first operation that consumes numbers of leaves, after they were moved at most.

    A contraction is one too if they were changed before, as by a scale: only there their order is known.

    ``ids`` says which numbers of `Trace.weights`, in a form that is the same in every framework:
    (batch, contracted, columns) of a ``contract``, (outputs, inputs, *window) of a ``conv``, (channels,
    *places) of the ``image`` that it takes, (1, rows, features) of a ``gather``, else without axes of size
    one and axes along which they repeat.
    """

    order: int
    node: int
    role: str  # contract, conv, image, gather, add, sub, mul, div, cat or the operation's name
    ids: np.ndarray
    operand: int | None  # node of the other operand
    name: str  # of the leaf that the first number belongs to
    bias: "int | None" = None  # of a contraction: the site that adds to its result
    columns: list[tuple[int, int]] = field(default_factory=list)  # (site, column) of the reference, by column


@dataclass
class Binding:
    """Which numbers of the reference's weights are the port's."""

    numbers: np.ndarray  # for each of the port's `Trace.weights` the reference's; -1: not bound
    sites: dict[int, int] = field(default_factory=dict)  # the port's site to the reference's
    names: list[tuple[str, str, str]] = field(default_factory=list)  # port's leaf, reference's, and why
    unbound: list[str] = field(default_factory=list)  # leaves of the port that keep their own numbers
    sure: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))  # which numbers no guess is in
    moved: bool = False  # some weight was used before it was known where it belongs: run again

    def fill(self, reference: np.ndarray, own: np.ndarray | float, part: slice = slice(None)) -> np.ndarray:
        """One number for each of the port's weights: the reference's where it is bound, else its own."""
        numbers = self.numbers[part]
        found = np.full(numbers.shape, own, np.result_type(reference, own))
        found[numbers >= 0] = reference[numbers[numbers >= 0]]
        return found


@dataclass
class Gradients:
    """Of one scalar, in float64."""

    loss: float
    weights: np.ndarray  # as `Trace.weights`; NaN: the number has no gradient


@dataclass
class Rounded:
    """The outputs in float32, and how far they move if the weights move by a unit in the last place."""

    outputs: dict[str, np.ndarray]
    floor: dict[str, float]  # largest absolute change of each output


@dataclass
class Trace:
    """One forward pass of a model in float64."""

    framework: str  # PyTorch, JAX or ONNX
    nodes: list[Node] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    leaves: list[Leaf] = field(default_factory=list)
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0))  # every leaf's numbers, as used
    given: np.ndarray = field(default_factory=lambda: np.zeros(0))  # the same as the model had them
    outputs: dict[str, int] = field(default_factory=dict)  # label, such as [0] or ['logits'], to node
    summed: dict[str, np.ndarray] = field(default_factory=dict)  # biases that were added to another's
    padding: dict[str, int] = field(default_factory=dict)  # rows of embeddings that are never trained
    calls: list[tuple[str, int]] = field(default_factory=list)  # module's path and its output's node
    state: dict[str, int] = field(default_factory=dict)  # leaves that the pass changed: name to node after
    values: dict[int, np.ndarray] = field(default_factory=dict)  # of nodes up to `KEPT` numbers
    partial: bool = False  # a first pass of a large model: not all values are kept
    notes: list[str] = field(default_factory=list)
    scalars: list[float] = field(default_factory=list)  # numbers that the model's code names
    training: bool | None = None  # the model's mode, where it has one
    loss: int | None = None  # node of the loss, if one was given
    binding: Binding | None = None  # to the reference, if the trace was made against one
    versions: dict[str, str] = field(default_factory=dict)

    def leaf(self, number: int) -> Leaf:
        """The leaf that a number of ``weights`` belongs to."""
        return self.leaves[bisect_right(self.leaves, number, key=lambda leaf: leaf.start) - 1]


@dataclass(frozen=True)
class Edit:
    """A change of one operation of a run, to try a cause: other settings, or other operands."""

    params: Mapping[str, Any] = field(default_factory=dict)
    operands: Mapping[int, Callable[[np.ndarray], np.ndarray]] = field(default_factory=dict)  # by position


class Model(Protocol):
    """One side of a comparison. A recorded trace answers each question from what was stored."""

    everything: bool  # keep all values, not only those of a first pass

    @property
    def framework(self) -> str:
        """PyTorch, JAX or ONNX."""
        ...

    def trace(
        self,
        reference: Trace | None = None,
        weights: np.ndarray | None = None,
        replace: Mapping[int, np.ndarray] | None = None,
        before: "Trace | None" = None,
    ) -> Trace:
        """Run forward.

        Args:
            reference: bind the weights to this trace's by their use, see `bind`.
            weights: numbers to run with instead, as `Trace.weights`.
            replace: values to go on with, by node.
            before: an earlier run against the same reference, whose sure bindings are kept.

        Raises:
            UserError: the model cannot take its inputs, or does what cannot be traced.
        """
        ...

    def replay(
        self,
        trace: Trace,
        changed: Mapping[int, np.ndarray],
        edits: Mapping[int, Edit] | None = None,
        until: int | None = None,
    ) -> dict[int, np.ndarray]:
        """Values that follow from changed values or operations, without running all of the model.

        Args:
            trace: the last that `trace` returned; other values are taken from it.
            changed: values to start from, by node.
            edits: operations to change, by node.
            until: the last node that is needed.

        Returns:
            New values by node; a value that cannot be computed again is missing, and all that follow from it.
        """
        ...

    def gradients(
        self, weights: np.ndarray, cotangents: Mapping[str, np.ndarray], without: str = ""
    ) -> Gradients:
        """Gradients of the model's loss, or of the sum of its outputs times ``cotangents``.

        Args:
            weights: numbers to run with, as `Trace.weights`.
            cotangents: by the outputs' labels.
            without: ``stop_gradient``, or ``maximum`` for JAX's rule at ties, to try a cause.

        Raises:
            UserError: the loss is no scalar, or something has no derivative.
        """
        ...

    def rounded(self, weights: np.ndarray) -> Rounded:
        """Run forward in float32, on the CPU, with matrix products of full precision."""
        ...
