"""What every tracer calls to build a `Trace`: leaves, inputs, constants, uses of weights, operations."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lockstep.bind import Binder
from lockstep.trace import KEPT, MANY, SMALL, Leaf, Node, Site, Source, Trace
from lockstep.values import fingerprint, squeeze_ids, unrepeated

CONTRACTIONS = ("contract", "conv")
ORDERED = (*CONTRACTIONS, "image", "gather")  # roles that say in which order numbers are


class Operand:
    """A value while a model runs.

    Attributes:
        value: the array; for what is not numeric (a random key) whatever the framework has.
        node: its node; None for literals.
        ids: which numbers of `Trace.weights` it consists of, if it holds nothing else, in its shape.
        columns: which of the reference's biases each number waits for (-1: none), in its shape.
        roots: as ``ids``, of a weight that was changed, as by a scale: what each number was made of.
    """

    __slots__ = ("columns", "ids", "node", "roots", "value", "version")

    def __init__(
        self,
        value: Any,
        node: int | None = None,
        ids: np.ndarray | None = None,
        columns: np.ndarray | None = None,
        roots: np.ndarray | None = None,
    ):
        self.value, self.node, self.ids, self.columns, self.version = value, node, ids, columns, 0
        self.roots = roots if ids is None else ids


def once(ids: np.ndarray) -> np.ndarray:
    """Numbers without their repetitions along the first axis, as for each example or group."""
    n = np.unique(ids.reshape(len(ids), -1)[:, 0]).size if ids.size else len(ids)
    parts = ids.reshape(-1, n, *ids.shape[1:]) if n and not len(ids) % n else ids[None]
    return parts[0] if (parts == parts[0]).all() else ids


class Recorder:
    """Builds a trace while a model runs, and binds its weights to a reference's at their first use."""

    def __init__(
        self,
        framework: str,
        reference: Trace | None = None,
        weights: np.ndarray | None = None,
        replace: Mapping[int, np.ndarray] | None = None,
        everything: bool = False,
        before: Trace | None = None,
    ):
        self.before = before
        self.trace = Trace(framework)
        self.room = np.inf if everything else MANY  # numbers that may still be kept
        self.reference, self.given, self.replace = reference, weights, replace or {}
        self.binder: Binder | None = None
        self.version = 0  # of the weights: counts the bindings
        self.pending: list[Site] = []
        self.images: dict[int, np.ndarray] = {}  # numbers of weights that nodes consist of
        self.casts: set[tuple[Source, ...]] = set()  # to float32, which are computed in float64

    # --- what a run starts from ---

    def leaves(self, leaves: Iterable[tuple[str, np.ndarray, bool, bool]]) -> list[Operand]:
        """Begin with all leaves: (name, array, trainable, constant). Integers are no weights."""
        found, parts, at = [], [], 0
        for name, array, trainable, constant in leaves:
            node = self._node(name, "parameter", (), array, module=name)
            node.weighted = node.weighted and not constant
            ids = None
            if array.dtype.kind in "fc":
                stop = at + array.size
                self.trace.leaves.append(Leaf(name, array.shape, at, stop, node.id, trainable, constant))
                ids = np.arange(at, stop, dtype=np.int32).reshape(array.shape)
                parts.append(array.ravel())
                at = stop
            other = self.replace.get(node.id)
            if ids is not None and other is None:
                self.images[node.id] = ids
            found.append(Operand(array, node.id, ids) if other is None else Operand(other, node.id))
        trace = self.trace
        trace.given = np.concatenate(parts) if parts else np.zeros(0)
        trace.weights = trace.given
        if self.given is not None:
            trace.weights, self.version = self.given, 1
        elif self.reference is not None:
            trace.weights = trace.given.copy()
            self.binder = Binder(self.reference, trace, self.before)
            self.version = 1
        return found

    def input(self, name: str, array: np.ndarray) -> Operand:
        """Add an input of the model."""
        node = self._node(name, "input", (), array)
        return Operand(self.replace.get(node.id, array), node.id)

    def constant(self, array: np.ndarray, sources: tuple[Source, ...] = ()) -> Operand:
        """Add an array that neither is an input nor comes from an operation."""
        node = self._node("constant", "constant", (), array, sources=sources)
        return Operand(self.replace.get(node.id, array), node.id)

    # --- operations ---

    def value(self, operand: Operand) -> Any:
        """The operand's array; numbers of weights as they are bound by now."""
        if operand.ids is not None and operand.version != self.version:
            numbers = self.trace.weights[operand.ids]
            is_complex = getattr(operand.value, "dtype", numbers.dtype).kind == "c"
            operand.value = numbers if is_complex else np.real(numbers)
            operand.version = self.version
        return operand.value

    def use(self, role: str, operand: Operand, ids: np.ndarray, other: Operand | None = None) -> None:
        """Say before an operation that it consumes numbers of weights, and bind them.

        Args:
            role: as in `Site`.
            operand: that consists of the numbers.
            ids: the numbers, in the form that `Site` asks for; other roles in the operand's shape.
            other: the other operand.
        """
        if not ids.size:
            return
        trace = self.trace
        data = any(trace.nodes[o.node].data for o in (operand, other) if o and o.node is not None)
        data |= bool(other and other.node is not None and not trace.nodes[other.node].weighted)
        ids = once(ids) if operand.ids is None else ids
        if operand.ids is None and (not data or np.unique(ids).size < ids.size):
            return
        if role not in ORDERED:
            ids = squeeze_ids(ids)
        name = trace.leaf(int(ids.flat[0])).name
        site = Site(len(trace.sites), -1, role, ids, other.node if other else None, name)
        trace.sites.append(site)
        self.pending.append(site)
        sure = data and role in ORDERED
        if self.binder and self.binder.bind(site, other.columns if other else None, sure):
            self.version += 1

    def record(
        self,
        op: str,
        operands: Sequence[Operand],
        values: Sequence[Any],
        *,
        moves: bool = False,
        ids: Sequence[np.ndarray | None] | None = None,
        moved: Callable[[np.ndarray], Sequence[np.ndarray] | None] | None = None,
        pointwise: bool = False,
        column_axes: tuple[int, ...] | None = None,
        sources: tuple[Source, ...] = (),
        module: str = "",
        params: Mapping[str, Any] | None = None,
    ) -> list[Operand]:
        """Add the results of an operation.

        Args:
            op: its name.
            operands: what it takes.
            values: its results.
            moves: it only moves, repeats or casts numbers.
            ids: for each result the numbers of weights that it consists of.
            moved: what the operation does to the places of its one operand's numbers, if it moves them.
            pointwise: each number of its result comes from one of each operand.
            column_axes: of a contraction's result: the axes along which the columns of the weight lie.
            sources: lines of the user's code, innermost first.
            module: the path of the module.
            params: settings, of numbers, strings and lists of them.
        """
        trace, inputs = self.trace, tuple(o.node for o in operands if o.node is not None)
        for i in inputs:
            if trace.nodes[i].kind == "constant" and not trace.nodes[i].sources:
                trace.nodes[i].sources = sources  # where it is used first
        columns, roots = (
            moved(places) if moved and len(operands) == 1 and places is not None else None
            for places in ((operands[0].columns, operands[0].roots) if operands else (None, None))
        )
        if pointwise:
            roots = [self._roots(operands, np.shape(values[0]))]
        found = []
        for index, value in enumerate(values):
            mine = ids[index] if ids else None
            kind = "structure" if moves else "operation"
            part = index if len(values) > 1 else None
            node = self._node(op, kind, inputs, value, sources, module, params, part)
            value = self.replace.get(node.id, value)
            if node.id in self.replace:
                mine = None
            node.image = mine is not None
            if mine is not None:
                self.images[node.id] = mine
            if moves and inputs:
                node.contraction = trace.nodes[inputs[0]].contraction
            carried = (places[index] if places else None for places in (columns, roots))
            found.append(Operand(value, node.id, mine, *carried))
            found[-1].version = self.version
        for site in self.pending:
            site.node = found[0].node if found and found[0].node is not None else -1
            if site.role in CONTRACTIONS:
                trace.nodes[site.node].contraction = site.order
                if self.binder and column_axes is not None:
                    found[0].columns = self._columns(site, np.shape(values[0]), column_axes)
            elif site.role == "add" and site.operand is not None:
                contraction = trace.nodes[site.operand].contraction
                if contraction is not None and trace.sites[contraction].bias is None:
                    trace.sites[contraction].bias = site.order
        self.pending.clear()
        return found

    def _roots(self, operands: Sequence[Operand], shape: tuple[int, ...]) -> np.ndarray | None:
        """Of which weight's numbers a result is made one by one: the largest, if no activation is."""
        sizes = [unrepeated(np.asarray(o.value if o.roots is None else o.roots)).size for o in operands]
        weights = [i for i, o in enumerate(operands) if o.roots is not None]
        best = max(weights, key=lambda i: sizes[i], default=None)
        if best is None:
            return None
        others = [i for i, o in enumerate(operands) if o is not operands[best] and o.node is not None]
        if any(self.trace.nodes[operands[i].node or 0].data and sizes[i] >= sizes[best] for i in others):
            return None
        return np.broadcast_to(operands[best].roots, shape)  # type: ignore[arg-type]

    def _columns(self, site: Site, shape: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray | None:
        assert self.reference
        sites, waiting = self.reference.sites, []
        for order, column in site.columns:
            bias = sites[order].bias
            ids = sites[bias].ids.ravel() if bias is not None else ()
            waiting.append(ids[column] if column < len(ids) else -1)
        if not waiting or max(waiting) < 0 or np.prod([shape[a] for a in axes]) != len(waiting):
            return None
        sizes = [shape[a] if a in axes else 1 for a in range(len(shape))]
        return np.broadcast_to(np.array(waiting).reshape(sizes), shape)

    def _node(
        self,
        op: str,
        kind: str,
        inputs: tuple[int, ...],
        value: Any,
        sources: tuple[Source, ...] = (),
        module: str = "",
        params: Mapping[str, Any] | None = None,
        part: int | None = None,
    ) -> Node:
        nodes = self.trace.nodes
        value = self.replace.get(len(nodes), value)
        array = value if isinstance(value, np.ndarray | np.generic) else None
        node = Node(len(nodes), op, kind, inputs, np.shape(array) if array is not None else (), "")
        node.sources, node.module, node.params = sources, module, dict(params or {})
        if part is not None:
            node.params["part"] = part
        if array is not None:
            node.dtype = str(array.dtype)
            node.fingerprint, node.scalar = fingerprint(np.asarray(array))
            small = array.size <= SMALL or kind in ("input", "constant")
            if small or array.size <= min(KEPT, self.room):
                self.trace.values[node.id] = np.asarray(array)
                self.room -= array.size
            else:
                self.trace.partial = True
        node.data = kind == "input" or any(nodes[i].data for i in inputs)
        floats = array is not None and array.dtype.kind in "fc"
        node.weighted = (kind in ("parameter", "input") and floats) or any(nodes[i].weighted for i in inputs)
        nodes.append(node)
        return node

    def keep(self, operand: Operand) -> int:
        """Keep a result of the model whatever its size; returns its node."""
        if operand.node is None:
            operand = self.constant(np.asarray(operand.value))
        assert operand.node is not None
        self.trace.values[operand.node] = np.asarray(self.value(operand))
        return operand.node

    def describe_casts(self) -> list[str]:
        """One note on casts to float32 that are computed in float64, by the user's lines of each."""
        lines = {(Path(place[0][0]).name, place[0][1]) for place in self.casts if place}
        files: dict[str, list[int]] = {}
        for file, line in sorted(lines):
            files.setdefault(file, []).append(line)
        where = [f"{f}:{n[0]}" if len(n) == 1 else f"{len(n)} lines of {f}" for f, n in files.items()]
        return [f"casts to float32 are computed in float64: {', '.join(where)}"] if where else []

    def finish(self) -> Trace:
        """The trace, with what was bound."""
        if self.binder:
            self.trace.binding = self.binder.finish()
        if self.binder or self.given is not None:
            for i, ids in self.images.items():  # what was moved before it was bound
                node, old = self.trace.nodes[i], self.trace.values.get(i)
                if old is not None:
                    numbers = self.trace.weights[ids]
                    new = numbers if old.dtype.kind == "c" else np.real(numbers)
                    self.trace.values[i] = new
                    node.fingerprint, node.scalar = fingerprint(new)
        return self.trace
