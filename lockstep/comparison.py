"""Compare two models: the verdict from their outputs, then where they part, and why."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lockstep import adapters
from lockstep.align import Alignment, Region, behind_moves
from lockstep.errors import UserError
from lockstep.locate import Finding, locate
from lockstep.rebind import rebind
from lockstep.result import Difference, Place, Result, Row
from lockstep.trace import Model, Node, Rounded, Source, Trace
from lockstep.values import EXACT, NEAR, close, distance, fit_to, same_order

FAULTS = 6  # differences that are looked for, one after another
SEARCHES = 12  # for differences; one fault at several calls takes several
RUNS = 4  # of a port until no weight is bound otherwise than it was used
NOISE = 10.0  # float32: how many times the noise floor a difference may be
PICTURES = ("convolution", "conv", "pool", "upsample")  # operations that take channels first in PyTorch


def compare(
    reference: Any,
    port: Any,
    inputs: Any,
    *,
    port_inputs: Any = None,
    flax_inputs: Any = None,
    copy_weights: bool = True,
    loss: tuple[Any, Any] | None = None,
    optimizers: tuple[Any, Any] | None = None,
    steps: int = 10,
    backward: bool = True,
    float32: bool = True,
    exact: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Result:
    """Compare two models; neither is changed.

    Args:
        reference: a `torch.nn.Module`, `nnx.Module`, `equinox.Module`, what `lockstep.linen` or
            `lockstep.function` returns, or the path of an .onnx file or of a recorded trace.
        port: the same.
        inputs: an array (NumPy or PyTorch), a tuple of arguments or a dict of keyword arguments, as the
            reference takes them.
        port_inputs: the same as the port takes them. Default: as the reference takes them, images with the
            channels last where the port's convolutions want them so.
        flax_inputs: another name of ``port_inputs``.
        copy_weights: compare the code only, with the reference's weights in both; False: compare the given
            weights too.
        loss: two functions, each from its model's output to a scalar. Default: the sum of all outputs
            multiplied with fixed random numbers.
        optimizers: of each side: a PyTorch optimizer or learning-rate scheduler (or a function from
            parameters to one), or an Optax transformation. Both models take ``steps`` training steps.
        steps: how many.
        backward: compare gradients.
        float32: compare in float32 too.
        exact: evaluate JAX's primitives by JAX, not by NumPy.
        progress: called with what is done next.

    Raises:
        UserError: what was given cannot be compared.
    """
    began = time.perf_counter()
    say = progress or (lambda text: None)
    for name, both in (("loss", loss), ("optimizers", optimizers)):
        if both is not None and not (isinstance(both, tuple | list) and len(both) == 2):
            raise UserError(f"{name} must be a pair: the reference's and the port's")
    other = port_inputs if port_inputs is not None else flax_inputs
    comparison = Comparison(say)
    comparison.make(reference, port, as_inputs(inputs), other, loss or (None, None), exact)
    comparison.run(copy_weights, backward, float32, loss is not None)
    if optimizers and not comparison.result.differences:
        from lockstep.gradients import cotangents
        from lockstep.steps import compare_steps

        say("training steps")
        first, second = comparison.models
        traces, factors = (comparison.reference, comparison.port), cotangents(comparison.reference)
        found, apart = compare_steps(first, second, traces, optimizers, factors, steps)
        comparison.result.differences += [found] if found else []
        if not found and apart > EXACT:
            comparison.result.notes.append(
                f"training steps: parameters differ by up to {apart:.1e} of how far they moved; no more than "
                "rounding to float32 may make"
            )
        comparison.result.compared.append(f"{steps} training steps")
    comparison.result.seconds = time.perf_counter() - began
    return comparison.result


def as_inputs(inputs: Any) -> tuple[tuple, dict]:
    """Arguments and keyword arguments, with NumPy arrays."""

    def convert(x: Any) -> Any:
        if isinstance(x, Mapping):
            return {k: convert(v) for k, v in x.items()}
        if isinstance(x, tuple | list):
            return type(x)(convert(v) for v in x) if not hasattr(x, "_fields") else type(x)(*map(convert, x))
        if type(x).__module__.startswith("torch") and hasattr(x, "detach"):
            return x.detach().cpu().numpy()
        keys = "key<" in str(getattr(x, "dtype", ""))
        return np.asarray(x) if adapters.is_array(x) and not keys else x

    if isinstance(inputs, Mapping):
        return (), convert(dict(inputs))
    return (convert(tuple(inputs)) if isinstance(inputs, tuple | list) else (convert(inputs),)), {}


def make_model(
    given: Any,
    candidates: list[tuple[tuple, dict]],
    training: bool | None = None,
    loss: Any = None,
    exact: bool = False,
    stir: bool = True,
) -> Model:
    """A side of a comparison from what the user gave.

    Raises:
        UserError: it is nothing that can be compared.
    """
    kind = adapters.kind_of(given)
    if kind == "torch":
        from lockstep.trace_torch import TorchModel

        return TorchModel(given, *candidates[0], loss=loss, stir=stir)
    if isinstance(given, str | Path):
        path = Path(given)
        if not path.is_file():
            raise UserError(f"there is no file {path}")
        if path.suffix == ".onnx":
            from lockstep.trace_onnx import OnnxModel

            return OnnxModel(path, *candidates[0])
        from lockstep.record import read

        return read(path, candidates[0])
    if not kind:
        raise UserError(f"cannot compare {adapters.describe(given)}")
    from lockstep.trace_jax import JaxModel

    return JaxModel(adapters.adapt(given, training), candidates, loss, exact)


class Comparison:
    """Two models, their traces and what was found so far.

    Attributes:
        models: the reference and the port.
        reference, port: their traces; the port's with the reference's weights.
        replaced: the port's values that were replaced by the reference's, to go on after a difference.
        binding: of the port's weights.
        exchanged: a run of the port with the bindings that `rebind` found; None: there are none.
        rebound: whether it was tried.
        result: what was found.
    """

    def __init__(self, say: Callable[[str], None]):
        self.say, self.result = say, Result()
        self.replaced: dict[int, np.ndarray] = {}
        self.exchanged: Trace | None = None
        self.rebound = False

    def make(self, reference: Any, port: Any, inputs: tuple, other: Any, losses: Any, exact: bool) -> None:
        """Make both models and trace them, the port against the reference."""
        if isinstance(port, str | Path) and not str(port).endswith(".onnx"):
            raise UserError(f"a recorded trace can only be the reference: exchange the two ({port})")
        self.say("trace the reference")
        exported = any(str(side).endswith(".onnx") for side in (reference, port))
        first = make_model(reference, [inputs], None, losses[0], exact, not exported)
        self.reference = first.trace()
        if not any(np.size(self.reference.values.get(n, 0)) for n in self.reference.outputs.values()):
            raise UserError("the reference returns only empty arrays, so there is nothing to compare")
        self.say("trace the port")
        candidates = [as_inputs(other)] if other is not None else self._candidates(reference, port, inputs)
        second = make_model(port, candidates, self.reference.training, losses[1], exact)
        self.models = first, second
        self.again({})
        if (self.reference.loss is None) != (self.port.loss is None):
            raise UserError(
                "one side has a loss and the other has not; give both, also where one is recorded"
            )
        self.result.versions = {**self.reference.versions, **self.port.versions}

    def _candidates(self, reference: Any, port: Any, inputs: tuple) -> list[tuple[tuple, dict]]:
        """The inputs as the port may take them: images in its own layout first."""
        last = [adapters.kind_of(side) in ("nnx", "linen") for side in (reference, port)]
        moves = (1, -1) if not last[0] else (-1, 1)
        nodes = self.reference.nodes
        pictures = {
            nodes[i].shape
            for node in nodes
            if any(word in node.op.lower() for word in PICTURES) and node.inputs
            for i in behind_moves(nodes, node.inputs[0])
        }

        def move(x: Any, guess: bool) -> Any:
            fits = isinstance(x, np.ndarray) and x.ndim > 2 and x.dtype.kind == "f"
            return np.moveaxis(x, *moves) if fits and (x.shape in pictures or (guess and x.ndim == 4)) else x

        args, kwargs = inputs
        moved, guessed = (
            (tuple(move(x, guess) for x in args), {k: move(x, guess) for k, x in kwargs.items()})
            for guess in (False, True)
        )
        return [*((moved, inputs) if last[0] != last[1] else (inputs, moved)), guessed]

    # --- what is compared, in order ---

    def run(self, copy_weights: bool, backward: bool, float32: bool, has_loss: bool) -> None:
        """Fill the result."""
        result = self.result
        if not copy_weights:
            from lockstep.checkpoint import compare_given

            result.differences += compare_given(self.reference, self.port, self.binding)
            result.compared.append(f"{len(self.port.leaves)} given weights")
        self.say("compare the outputs")
        self.forward()
        if not result.differences or (not copy_weights and not self.replaced):
            self.state()
            if has_loss:
                self.loss()
        ahead = any(getattr(model, "forward_only", False) for model in self.models)
        if ahead and (backward or float32):
            result.notes.append("an ONNX file has no gradients, and is compared in float64 only")
        if backward and not result.differences and not ahead:
            from lockstep.gradients import compare_gradients

            self.say("compare gradients")
            compare_gradients(self)
        if float32 and not result.differences and not ahead:
            self.say("compare in float32")
            self.rounded()
        for side in (self.reference, self.port):
            result.notes += [f"{side.framework}: {note}" for note in side.notes]
        unbound = list(self.binding.unbound)
        if unbound:
            some = ", ".join(unbound[:4]) + (f" and {len(unbound) - 4} more" if len(unbound) > 4 else "")
            result.notes.append(f"not bound to the reference's weights, keeps its own numbers: {some}")
        result.rows = self.rows()

    def forward(self) -> None:
        """Compare the outputs; find each difference, and go on behind it."""
        pairs, missing = self.pair_outputs()
        self.pairs = pairs
        self.permuted(pairs)
        found = self.follow(lambda: self.far(pairs), "output")
        self.result.compared.append(f"{len(pairs)} output{'s' if len(pairs) != 1 else ''}")
        self.result.differences += found + missing

    def follow(self, far: Callable[[], list[tuple[str, int, int, float]]], what: str) -> list[Difference]:
        """Find differences one after another, with the reference's value put in behind each.

        Args:
            far: the pairs of nodes that differ now: label, node of the reference, of the port, how far.
            what: what differs, in words.
        """
        differences: list[Difference] = []
        count = 0
        while bad := far():
            if self.reference.partial or self.port.partial:
                self.all_values()
                continue
            if soft := self.unify():
                self.again(soft)
                continue
            if all(distance_ <= NEAR for *_, distance_ in bad):
                self.near(bad, what)
                break
            if rebind(self, far):
                continue
            finding = locate(self, [(t, j) for _, t, j, _ in bad])
            words = "; ".join(f"{what}{label} differs by {_size(d)}" for label, _, _, d in bad[:3])
            count += 1
            found = self.describe(finding, words)
            same = next((d for d in differences if _is_same(d, found)), None)
            if same is None:
                differences.append(found)
            elif found.port:
                same.also += 1
            if not finding.replace or len(differences) >= FAULTS or count >= SEARCHES:
                break
            self.again(finding.replace)
        return differences

    def all_values(self) -> None:
        """Trace both again and keep all values, because something differs."""
        for model in self.models:
            model.everything = True
        self.reference = self.models[0].trace()
        self.again({})
        self.reference.partial = self.port.partial = False  # what is too large is known by its fingerprint

    def again(self, replace: Mapping[int, np.ndarray]) -> None:
        """Run the port again with further values replaced."""
        self.replaced |= replace
        self.adopt(self.run_port(self.exchanged), self.exchanged)

    def run_port(self, before: Trace | None) -> Trace:
        """Run the port, its weights bound anew: behind a difference operands do not match."""
        port = self.models[1].trace(self.reference, None, self.replaced, before)
        for _ in range(RUNS - 1):
            if port.binding and port.binding.moved:
                port = self.models[1].trace(self.reference, None, self.replaced, port)
        return port

    def adopt(self, port: Trace, exchanged: Trace | None) -> None:
        """Go on with a run of the port that began with some bindings."""
        assert port.binding is not None
        self.port, self.binding, self.exchanged = port, port.binding, exchanged

    @property
    def tolerance(self) -> float:
        """Of gradients and state: float32's if the outputs are no closer, or a rounded table was replaced."""
        return NEAR if self.result.near or self.replaced else EXACT

    def pair_outputs(self) -> tuple[list[tuple[str, int, int]], list[Difference]]:
        """Outputs that belong together: by name, then by values, then by size; and those of one side only."""
        mine, theirs = dict(self.reference.outputs), dict(self.port.outputs)
        pairs = [(label, mine.pop(label), theirs.pop(label)) for label in list(mine) if label in theirs]
        a, b = self.reference.values, self.port.values

        def sizes(x: np.ndarray) -> list[int]:
            return sorted(n for n in x.shape if n > 1)

        tests: list[Callable[[np.ndarray, np.ndarray], bool]] = [
            lambda x, y: same_order(x, y, NEAR) is not None,
            lambda x, y: sizes(x) == sizes(y),
            lambda x, y: len(mine) == len(theirs) == 1,
        ]
        for test in tests:
            for label, node in list(mine.items()):
                fits = [k for k, j in theirs.items() if node in a and j in b and test(a[node], b[j])]
                if fits:
                    if label and fits[0]:
                        self.result.notes.append(f"output{label} is compared with the port's output{fits[0]}")
                    pairs.append((label, mine.pop(label), theirs.pop(fits[0])))
        missing = []
        for label, node in mine.items():
            place = self.place(self.reference, self.reference.nodes[node])
            words = f"the port does not return output{label}"
            missing.append(Difference("missing", words, place, cause=words))
        for label, node in theirs.items():
            place = self.place(self.port, self.port.nodes[node])
            words = f"only the port returns output{label}"
            missing.append(Difference("missing", words, None, place, cause=words))
        return pairs, missing

    def far(self, pairs: list[tuple[str, int, int]]) -> list[tuple[str, int, int, float]]:
        """The outputs that differ, and how far."""
        found = []
        for label, t, j in pairs:
            a, b = self.reference.values.get(t), self.port.values.get(j)
            if a is None or b is None:
                prints = self.reference.nodes[t].fingerprint, self.port.nodes[j].fingerprint
                if prints[0] is None or prints[1] is None or not close(prints[0], prints[1]):
                    found.append((label, t, j, np.inf))
            elif same_order(a, b) is None:
                order = same_order(a, b, NEAR)
                found.append((label, t, j, _distance(a, b) if order is None else NEAR))
        return found

    def permuted(self, pairs: list[tuple[str, int, int]]) -> None:
        """Say which outputs are equal only with their axes in another order, and which show nothing."""
        for label, t, j in pairs:
            a, b = self.reference.values.get(t), self.port.values.get(j)
            order = same_order(a, b) if a is not None and b is not None else None
            numbers = self.reference.nodes[t].scalar, self.port.nodes[j].scalar
            if a is not None and a.size > 1 and None not in numbers:
                self.result.notes.append(
                    f"output{label} is the same number everywhere on both sides ({numbers[0]:g} in the "
                    "reference): equal or not, it shows little; give other inputs or weights"
                )
            if order and order != tuple(range(len(order))):
                self.result.notes.append(f"output{label} is equal with its axes in the order {order}")

    def near(self, bad: list[tuple[str, int, int, float]], what: str) -> None:
        """Equal within float32's rounding, not float64's: no difference, but said with its line."""
        self.result.near = True
        alignment = Alignment(self.reference, self.port, 1e-11)
        region = alignment.region(True, [j for _, _, j, _ in bad])
        start = region.entries[0] if region.entries else bad[0][2]
        place = self.place(self.port, self.port.nodes[start])
        start = "; ".join(place.lines()[:2])
        self.result.notes.append(
            f"{what}{bad[0][0]} is equal within float32's rounding only; it starts at {start}"
        )

    def unify(self) -> dict[int, np.ndarray]:
        """Tables of the port (no weight or input behind them) that are the reference's but for rounding."""
        alignment = Alignment(self.reference, self.port, 1e-13)
        found: dict[int, np.ndarray] = {}
        tables = [
            n
            for n in self.reference.nodes
            if n.fingerprint is not None
            and not n.weighted
            and n.id in self.reference.values
            and n.dtype[0] in "fc"
        ]
        changed: set[int] = set(self.replaced)
        for node in self.port.nodes:
            value = self.port.values.get(node.id)
            if changed & set(node.inputs):
                changed.add(node.id)
            elif (
                node.weighted
                or node.fingerprint is None
                or value is None
                or node.dtype[0] not in "fc"
                or alignment.matches[True].get(node.id)
                or node.id in changed
            ):
                continue
            else:
                for table in tables:
                    if table.fingerprint is not None and close(table.fingerprint, node.fingerprint, NEAR):
                        fitted = fit_to(self.reference.values[table.id], value, NEAR)
                        if fitted is not None:
                            found[node.id] = fitted
                            changed.add(node.id)
                            break
        if found:
            places = {f"{Path(f).name}:{n}" for i in found for f, n in self.port.nodes[i].sources[:1]}
            where = ", ".join(sorted(places)) or "no line of yours"
            self.result.notes.append(f"constants rounded to float32 are taken from the reference: {where}")
        return found

    def describe(self, finding: Finding, words: str) -> Difference:
        """A finding as the user sees it."""
        t, j = finding.reference, finding.port
        return Difference(
            finding.kind,
            words + (f": {finding.words}" if finding.words else ""),
            self.place(self.reference, self.reference.nodes[t]) if t is not None else None,
            self.place(self.port, self.port.nodes[j]) if j is not None else None,
            [
                (
                    self.place(self.reference, self.reference.nodes[a]),
                    self.place(self.port, self.port.nodes[b]),
                )
                for a, b in finding.before
            ],
            finding.cause,
        )

    def place(self, trace: Trace, node: Node) -> Place:
        """Where a node is: its lines, and those on which its operands were made."""
        takes: list[Source] = []
        todo = list(node.inputs)
        while todo:
            other = trace.nodes[todo.pop(0)]
            if other.kind in ("parameter", "input"):
                continue
            if other.sources[:1] and other.sources[0] not in (*node.sources, *takes):
                takes.append(other.sources[0])
            elif other.image or other.kind == "constant" or not other.data:
                todo += other.inputs
        module = node.module or next(
            (_owner(trace.nodes[i]) for i in node.inputs if trace.nodes[i].image), ""
        )
        op = node.params.get("within") or node.op
        sources = (*node.sources, *takes[:3])
        return Place(str(op), module, node.shape, sources, len(node.sources))

    def state(self) -> None:
        """Compare what the pass left in running statistics and other variables."""
        pairs = self.state_pairs()
        if pairs:
            self.result.compared.append(f"{len(pairs)} variables after the pass")
            found = self.follow(lambda: self.far_state(pairs), "after the pass ")
            for difference in found:
                difference.kind = "state"
            self.result.differences += found

    def state_pairs(self) -> list[tuple[str, int, int]]:
        """Variables that either pass changed: name, node after the pass of the reference, and of the port."""
        names = {leaf.name: leaf for leaf in self.reference.leaves}
        pairs = []
        for leaf in self.port.leaves:
            ids = self.binding.numbers[leaf.start : leaf.stop]
            if leaf.trainable or not ids.size or (ids < 0).any():
                continue
            other = self.reference.leaf(int(ids[0]))
            after = self.reference.state.get(other.name), self.port.state.get(leaf.name)
            if after != (None, None) and other.name in names:
                pairs.append((other.name, after[0] or other.node, after[1] or leaf.node))
        return pairs

    def far_state(self, pairs: list[tuple[str, int, int]]) -> list[tuple[str, int, int, float]]:
        """The variables that differ after the pass."""
        found = []
        for name, t, j in pairs:
            a, b = self.reference.values.get(t), self.port.values.get(j)
            if a is None or b is None or a.size != b.size:
                continue
            if same_order(a, b, self.tolerance) is None:
                found.append((name, t, j, max(_distance(a, b), 2 * NEAR)))
        return found

    def loss(self) -> None:
        """Compare the losses of equal outputs."""
        t, j = self.reference.loss, self.port.loss
        if t is None or j is None:
            return
        self.result.compared.append("the loss")
        pairs = [("", t, j)]
        found = self.follow(lambda: self.far(pairs), "loss")
        for difference in found:
            difference.kind = "loss"
        self.result.differences += found

    def rounded(self) -> None:
        """Compare the outputs in float32, against how far the reference's move by rounding its weights."""
        weights = self.binding.fill(self.reference.weights, self.port.weights)
        mine = self.models[0].rounded(self.reference.weights)
        theirs: Rounded = self.models[1].rounded(weights)
        for label, t, j in self.pairs:
            names = (
                [k for k, v in self.reference.outputs.items() if v == t],
                [k for k, v in self.port.outputs.items() if v == j],
            )
            a, b = mine.outputs.get(names[0][0]), theirs.outputs.get(names[1][0])
            if a is None or b is None or a.size != b.size or not a.size:
                continue
            scale = float(np.abs(np.where(np.isfinite(a), a, 0)).max()) or 1.0
            floor = max(mine.floor.get(names[0][0], 0.0), float(np.finfo(np.float32).eps) * scale)
            limit = NOISE * floor / scale
            if same_order(a, b, max(limit, 1e-12)) is None:
                words = (
                    f"output{label} in float32 differs by {_size(_distance(a, b))}, though equal in float64; "
                )
                words += f"the noise floor is {floor / scale:.1e}"
                place = (
                    self.place(self.reference, self.reference.nodes[t]),
                    self.place(self.port, self.port.nodes[j]),
                )
                self.result.differences.append(Difference("float32", words, *place))
        self.result.compared.append("the outputs in float32")

    def rows(self) -> list[Row]:
        """The table of the reference's modules."""
        alignment = Alignment(self.reference, self.port)
        found = []
        for module, node in self.reference.calls:
            value = self.reference.values.get(node)
            partner = next(alignment.partners(False, node), None)
            other = self.port.values.get(partner) if partner is not None else None
            far = None
            if value is not None and other is not None:
                order = same_order(value, other, NEAR)
                far = (
                    0.0 if order is None else distance(np.squeeze(value).transpose(order), np.squeeze(other))
                )
            found.append(Row(module, self.reference.nodes[node].shape, far))
        return found


def _is_same(a: Difference, b: Difference) -> bool:
    """Whether two differences are one fault at several calls: the same line and the same cause."""
    if a.port is None or b.port is None or a.kind != b.kind or a.cause != b.cause:
        return False
    lines = (
        [p.sources[:1] for p in (a.port, b.port)],
        [p.sources[:1] for p in (a.reference, b.reference) if p],
    )
    return bool(lines[0][0]) and lines[0][0] == lines[0][1] and a.port.op == b.port.op


def _owner(node: Node) -> str:
    return node.op.rpartition("/")[0] or node.op.rpartition(".")[0] or node.op


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """How far two outputs are apart in the order of axes in which they are closest."""
    from lockstep.values import permutations

    x, y = np.squeeze(a), np.squeeze(b)
    return min((distance(x.transpose(p), y) for p in permutations(x.shape, y.shape)), default=math.inf)


def _size(far: float) -> str:
    return "its shape" if math.isinf(far) else f"{far:.1e} of its largest number"


__all__ = ["Alignment", "Comparison", "Region", "as_inputs", "compare", "make_model"]
