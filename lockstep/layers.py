"""Compare two models layer by layer: running freely, each layer on PyTorch's input, and backwards."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lockstep import causes, kinds, observe_flax
from lockstep.causes import Case
from lockstep.kinds import Layout
from lockstep.observe import RELATIVE, SMALL, Call, Local, Recording, cotangent, difference, largest
from lockstep.observe_flax import FlaxSide, is_float, variables
from lockstep.observe_torch import TorchSide
from lockstep.pairing import Leaf, Loose, Pair
from lockstep.result import Row
from recipe.console import UserError, reason

EPSILON32 = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Inputs:
    """A model's arguments as NumPy arrays and other values."""

    args: tuple
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class OutputPair:
    """One array that both models return."""

    torch: str
    flax: str
    layout: Layout | None
    seed: int


@dataclass
class Layers:
    """Both models in one precision, their leaves paired; methods compare them.

    Attributes:
        torch: PyTorch's side.
        flax: Flax's side, with PyTorch's weights if they were copied.
        record: PyTorch's pass.
        pairs: the leaves that are compared.
        loose: the parameters outside leaves that are compared.
        rows: one for each call of a pair, and those that have no counterpart.
    """

    torch: TorchSide
    flax: FlaxSide
    inputs: Inputs
    flax_inputs: Inputs
    record: Recording
    shapes: Recording
    pairs: list[Pair]
    loose: list[Loose]
    losses: tuple[Callable, Callable] | None
    backward: bool
    outputs: list[OutputPair] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    extra: list[Row] = field(default_factory=list)  # output and loss
    unpaired: tuple[list[Leaf], ...] = ([], [])
    unused: list[str] = field(default_factory=list)  # parameters of Flax

    def __post_init__(self) -> None:
        self.by_torch = {pair.torch.path: pair for pair in self.pairs}
        self.by_flax = {pair.flax.path: pair for pair in self.pairs}
        self.calls = {(call.path, call.number): call for call in self.record.calls}
        self.row_of: dict[tuple[str, int], Row] = {}
        seen = {(call.path, call.number) for call in self.shapes.calls}
        for call in self.record.calls:
            pair = self.by_torch.get(call.path)
            if pair is None:
                continue
            row = Row(numbered(call.path, call.number), numbered(pair.flax.path, call.number), pair.kind)
            if (pair.flax.path, call.number) not in seen:
                row.verdict, row.where = "not compared", f"Flax does not call {row.flax}"
            self.rows.append(row)
            self.row_of[call.path, call.number] = row

    def weights(self) -> None:
        """Compare the weights as they are: `Row.weights`."""
        state, every = dict(self.torch.model.named_parameters()), variables(self.flax.model)
        for loose in reversed(self.loose):
            expected = loose.to_flax(state[loose.source].detach().numpy())
            actual = observe_flax.to_numpy(every[loose.variable].get_value())
            path = observe_flax.name_of(loose.variable)
            far = difference(actual, expected)
            row = Row(loose.source, path, "parameter", weights=far)
            if far > RELATIVE:
                row.what, row.where = "weights", f"the parameter {both(row)}"
                row.cause, row.arrays = causes.relate(expected, actual), {"torch": expected, "flax": actual}
            self.rows.insert(0, row)
        for pair in self.pairs:
            own = variables(self.flax.modules()[pair.flax.path])
            worst, case = 0.0, None
            for link in pair.links:
                expected = link.to_flax(*(pair.torch.tensors[name] for name in link.sources))
                actual = observe_flax.to_numpy(own[link.variable].get_value())
                far = difference(actual, expected)
                if far > worst:
                    worst, case = far, (link, expected, actual)
            row = self.row_of[pair.torch.path, 0]
            row.weights = worst
            if case and worst > RELATIVE:
                link, expected, actual = case
                row.arrays = {"torch": expected, "flax": actual}
                row.what = "weights"
                row.where = (
                    f"the weights of {both(row)}: {'/'.join(map(str, link.variable))} is not "
                    f"{' and '.join(link.sources)}"
                )
                row.cause = causes.explain_weights(pair.kind, link, expected, actual, pair.torch.tensors)

    def forward(self) -> None:
        """Run Flax freely, and each of its paired leaves on PyTorch's input."""
        order = {(call.path, call.number): index for index, call in enumerate(self.record.calls)}
        between: list[tuple[int, Case]] = []

        def visit(call: Call, output: Any) -> Any:
            pair = self.by_flax.get(call.path)
            theirs = self.calls.get((pair.torch.path, call.number)) if pair else None
            if pair is None or theirs is None:
                return output
            row = self.row_of[theirs.path, theirs.number]
            feed, row.input = self._compare_inputs(pair, theirs, call)
            row.free = self._compare_outputs(pair, theirs, call.outputs)[0]
            index = order[theirs.path, theirs.number]
            if row.input > RELATIVE and (not between or index < between[0][0]):
                between[:] = [(index, self._input_case(pair, theirs, call))]
            self._compare_alone(pair, theirs, call, feed, row)
            return output

        self.flax_record = self.flax.run(self.flax_inputs.args, self.flax_inputs.kwargs, visit)
        # The first difference in PyTorch's order, where the outputs of all leaves before are equal, is of
        # the code between; after that, inputs differ because something before them did.
        for call in self.record.calls:
            row = self.row_of.get((call.path, call.number))
            if row is None or row.input is None:
                continue
            if row.input > RELATIVE and between and order[call.path, call.number] == between[0][0]:
                self._blame_between(row, between[0])
            if (row.what and "gradient" not in row.what) or (row.free or 0) > RELATIVE:
                break
        self._compare_model_outputs()

    def _positions(self, kind: str, theirs: Call, call: Call) -> list[tuple[int, int]]:
        """Which input of a PyTorch call is which of the Flax call."""
        if kind == "attention":
            ours = [i for i, x in enumerate(call.inputs) if is_float(x) and x.ndim > 2][:3]
            return list(zip(range(3), ours, strict=False))
        return list(zip(range(len(theirs.inputs)), range(len(call.inputs)), strict=False))

    def _compare_inputs(self, pair: Pair, theirs: Call, call: Call) -> tuple[dict[int, np.ndarray], float]:
        """PyTorch's inputs in Flax's layout, by position, and how far Flax's own are from them."""
        feed, differences = {}, []
        for i, j in self._positions(pair.kind, theirs, call):
            mine = observe_flax.to_numpy(call.inputs[j])
            layout = kinds.find_layout(theirs.inputs[i], mine, pair.kind, theirs.module)
            if layout is None:
                differences.append(np.inf)
                layout = self._default_layout(theirs.inputs[i].ndim, pair)
            else:
                differences.append(difference(mine, theirs.inputs[i].transpose(layout)))
            feed[j] = theirs.inputs[i].transpose(layout)
        return feed, largest(differences)

    def _default_layout(self, ndim: int, pair: Pair) -> Layout:
        images = any(p.kind in kinds.CHANNELS_FIRST for p in self.pairs)
        return kinds.layouts(ndim, "conv" if images and ndim == 4 else pair.kind)[0]

    def _compare_outputs(
        self, pair: Pair, theirs: Call, outputs: Sequence[Any]
    ) -> tuple[float, list[Layout | None]]:
        differences, found = [], []
        for expected, array in zip(theirs.outputs, outputs, strict=False):
            actual = observe_flax.to_numpy(array)
            layout = kinds.find_layout(expected, actual, pair.kind, theirs.module)
            found.append(layout)
            differences.append(np.inf if layout is None else difference(actual, expected.transpose(layout)))
        return largest(differences), found

    def _compare_alone(self, pair: Pair, theirs: Call, call: Call, feed: dict, row: Row) -> None:
        """The teacher-forced columns of one row."""
        cotangents = [cotangent(x.shape, i) for i, x in enumerate(theirs.outputs)]
        statistics = {
            link.variable: link.to_flax(*(theirs.statistics[name] for name in link.sources))
            for link in pair.links
            if all(name in theirs.statistics for name in link.sources)
        }
        expected = self.torch.replay(theirs, cotangents) if self.backward else None

        def rerun(edit: Callable[[Any], Any] = lambda module: None, **keywords: Any) -> Local:
            local = observe_flax.replay(call.module, call, feed, [], statistics, edit, **keywords)
            if not self.backward:
                return local
            given = [
                np.zeros(c.shape) if layout is None else c.transpose(layout)
                for c, layout in zip(
                    cotangents, self._compare_outputs(pair, theirs, local.outputs)[1], strict=False
                )
            ]
            return observe_flax.replay(call.module, call, feed, given, statistics, edit, **keywords)

        def measure(local: Local) -> dict[str, float]:
            return self._measure_alone(pair, theirs, local, expected)

        try:
            local = rerun()
        except Exception as error:
            row.verdict, row.where = (
                "not compared",
                f"{row.flax} cannot take PyTorch's input: {reason(error)}",
            )
            return
        found = measure(local)
        row.output, row.statistics = found["output"], found.get("statistics")
        row.input_gradient, row.parameter_gradient = (
            found.get("input gradient"),
            found.get("parameter gradient"),
        )
        rate = self.flax.rates.get(call.path, getattr(call.module, "rate", None))
        setting = causes.compare_settings(pair.kind, theirs.module, rate)
        for what, far in found.items():
            if far > RELATIVE and not row.what:
                row.what = what
                case = Case(what, pair, theirs, call, local, expected, rerun, measure)
                row.where = describe(what, row, case)
                row.arrays = {"input": theirs.inputs[0] if theirs.inputs else np.zeros(0)}
                row.arrays |= {f"torch_{i}": x for i, x in enumerate(theirs.outputs)}
                row.arrays |= {f"flax_{i}": x for i, x in enumerate(local.outputs)}
                row.cause = causes.explain_leaf(case)
        if setting and not row.what:
            row.what, row.where, row.cause = "setting", f"a setting of {both(row)}", setting

    def _measure_alone(
        self, pair: Pair, theirs: Call, local: Local, expected: Local | None
    ) -> dict[str, float]:
        far = {"output": self._compare_outputs(pair, theirs, local.outputs)[0]}
        moved = [
            difference(
                local.statistics[link.variable],
                link.to_flax(*(theirs.statistics_after[n] for n in link.sources)),
            )
            for link in pair.links
            if link.variable in local.statistics and all(n in theirs.statistics_after for n in link.sources)
        ]
        if moved:
            far["statistics"] = largest(moved)
        if expected is None or far["output"] == np.inf:
            return far
        scale = SMALL * float(
            sum(np.linalg.norm(cotangent(x.shape, i)) for i, x in enumerate(theirs.outputs))
        )
        gradients = [(g, x) for g, x in zip(expected.inputs, theirs.inputs, strict=False)]
        given = [g for g in local.inputs if g is not None]
        if pair.kind == "attention" and given:  # the same array may be given once or three times
            wanted = [g for g, _ in gradients[:3] if g is not None]
            if len(given) != len(wanted) and len({g.shape for g in wanted}) == 1:
                gradients, given = [(np.sum(wanted, 0), gradients[0][1])], [np.sum(given, 0)]
        inputs_far = []
        for (g, x), mine in zip(gradients, given, strict=False):
            if g is None:
                g = np.zeros(x.shape)
            layout = kinds.find_layout(g, mine, pair.kind, theirs.module)
            inputs_far.append(np.inf if layout is None else difference(mine, g.transpose(layout), scale))
        if inputs_far:
            far["input gradient"] = largest(inputs_far)
        params = []
        for link in pair.links:
            if link.variable in local.parameters:
                zeros = {n: np.zeros_like(pair.torch.tensors[n]) for n in link.sources}
                gradient = link.gradient(*(expected.parameters.get(n, zeros[n]) for n in link.sources))
                params.append(difference(local.parameters[link.variable], gradient, scale))
        if params:
            far["parameter gradient"] = largest(params)
        return far

    def _input_case(self, pair: Pair, theirs: Call, call: Call) -> Case:
        worst, arrays = -1.0, (np.zeros(0), np.zeros(0))
        for i, j in self._positions(pair.kind, theirs, call):
            mine, expected = observe_flax.to_numpy(call.inputs[j]), theirs.inputs[i]
            layout = kinds.find_layout(expected, mine, pair.kind, theirs.module)
            far = np.inf if layout is None else difference(mine, expected.transpose(layout))
            if layout is None:
                layout = self._default_layout(mine.ndim, pair)
            if far > worst:
                worst, arrays = far, (expected, mine.transpose(np.argsort(layout)))
        return Case("input", pair, theirs, call, between=arrays)

    def _blame_between(self, row: Row, found: tuple[int, Case]) -> None:
        index, case = found
        row.what = "input"
        expected, actual = case.between
        row.arrays = {"torch": expected, "flax": actual}
        before = [c for c in self.record.calls[:index] if c.path in self.by_torch]
        last = f"between {numbered(before[-1].path, before[-1].number)} and" if before else "before"
        row.where = (
            f"the code {last} {both(row)}: the input of {row.torch} differs, every output before is equal"
        )
        if expected.shape != actual.shape:
            row.where += f" (shape {expected.shape} in PyTorch, {actual.shape} in Flax, in PyTorch's layout)"
        row.cause = self._explain_between(index, expected, actual)

    def _explain_between(self, index: int, expected: np.ndarray, actual: np.ndarray) -> str:
        """The cause of a difference of code between leaves, before the call of this index."""
        start = next((i for i in reversed(range(index)) if self.record.calls[i].path in self.by_torch), -1)
        missing = [
            leaf
            for leaf in self.unpaired[0]
            if leaf.tensors and any(c.path == leaf.path for c in self.record.calls[start + 1 : index])
        ]
        for leaf in missing:
            for other in self.unpaired[1]:
                if other.tensors and kinds.plain(leaf.path) == kinds.plain(other.path):
                    return f"{leaf.path} has {_shapes(leaf)} in PyTorch; {_shapes(other)} in Flax"
        if missing:
            return f"Flax has no counterpart of {', '.join(leaf.path for leaf in missing)}"
        sources: dict[str, np.ndarray] = {}
        for name, parameter in self.torch.model.named_parameters():
            if any(loose.source == name for loose in self.loose) or "." not in name:
                sources[f"the parameter {name}"] = parameter.detach().numpy()
        leaves = [
            x for x in jax.tree.leaves((self.inputs.args, self.inputs.kwargs)) if isinstance(x, np.ndarray)
        ]
        sources |= {f"the model's input {i or ''}".strip(): x for i, x in enumerate(leaves)}
        for call in [c for c in self.record.calls[:index] if c.path in self.by_torch][-10:]:
            name = numbered(call.path, call.number)
            sources |= {f"the input of {name}": x for x in call.inputs[:1]}
            sources |= {f"the output of {name}": x for x in call.outputs[:1]}
        found = causes.explain_between(expected, actual, sources)
        extra = [leaf.path for leaf in self.unpaired[1] if leaf.tensors]
        return found or (f"PyTorch has no counterpart of {', '.join(extra)}" if extra else "")

    def _compare_model_outputs(self) -> None:
        if self.flax_record.stopped:
            row = Row("(output)", "(output)", "", what="output", verdict="different")
            row.where = f"Flax's forward pass, which stopped: {self.flax_record.stopped}"
            self.extra.append(row)
            return
        rest = dict(self.flax_record.outputs)
        for seed, (label, expected) in enumerate(self.record.outputs.items()):
            if not rest:
                where = "Flax does not return it"
                self.extra.append(Row(f"(output{label})", "", "", verdict="not compared", where=where))
                continue
            other = label if label in rest else next(iter(rest))
            actual = rest.pop(other)
            images = any(pair.kind in kinds.CHANNELS_FIRST for pair in self.pairs)
            layout = kinds.find_layout(expected, actual, "conv" if images and expected.ndim == 4 else "")
            self.outputs.append(OutputPair(label, other, layout, seed))
            far = np.inf if layout is None else difference(actual, expected.transpose(layout))
            row = Row(f"(output{label})", f"(output{other})", "", free=far, input=far)
            if layout is not None:
                row.allclose = bool(np.allclose(actual, expected.transpose(layout), 1e-3, 1e-3))
            if far > RELATIVE and self._equal_so_far():
                mine = actual.transpose(np.argsort(layout or range(actual.ndim)))
                row.what = "input"
                row.where = (
                    f"the code after {self.rows[-1].name if self.rows else 'the inputs'}: {row.torch} differs"
                )
                row.arrays = {"torch": expected, "flax": mine}
                row.cause = self._explain_between(len(self.record.calls), expected, mine)
            self.extra.append(row)
        for label in rest:
            where = "PyTorch does not return it"
            self.extra.append(Row("", f"(output{label})", "", verdict="not compared", where=where))

    @property
    def has_objective(self) -> bool:
        """Whether both models have the same objective: losses, or all outputs of both."""
        return bool(self.losses) or all(row.verdict != "not compared" for row in self.extra)

    def _equal_so_far(self) -> bool:
        """Whether no leaf's output differs."""
        forward = all(not row.what or "gradient" in row.what for row in self.rows)
        return forward and all((row.free or 0) <= RELATIVE for row in self.rows)

    # --- backward ------------------------------------------------------------------------------------------

    def objective(self, output: Any) -> Any:
        """The scalar whose gradients are compared, of Flax's output."""
        if self.losses:
            return self.losses[1](output)
        arrays = observe_flax.labelled(output, observe_flax.is_array)
        total = jnp.zeros((), self.flax.precision)
        for pair in self.outputs:
            array = arrays[pair.flax]
            if is_float(array) and pair.layout is not None:
                shape = self.record.outputs[pair.torch].shape
                total = total + (array * cotangent(shape, pair.seed).transpose(pair.layout)).sum()
        return total

    def loss(self) -> None:
        """Compare the losses of PyTorch's own output, and their gradients by it."""
        if not self.losses:
            return
        feed = {p.flax: self.record.outputs[p.torch].transpose(p.layout) for p in self.outputs if p.layout}
        leaves, tree = jax.tree.flatten(self.flax.raw_output)
        arrays = observe_flax.labelled(self.flax.raw_output, observe_flax.is_array)
        places = {label: i for label, x in arrays.items() for i, leaf in enumerate(leaves) if leaf is x}
        if len(places) < len(arrays):
            raise UserError(
                "the Flax model returns an object that JAX cannot take apart; "
                "return a tuple, a dictionary or a flax.struct.dataclass"
            )

        def value(given: dict[str, Any]) -> Any:
            filled = list(leaves)
            for label, array in given.items():
                filled[places[label]] = array
            return observe_flax._scalar(self.objective, jax.tree.unflatten(tree, filled))

        floats = {k: jnp.asarray(v, self.flax.precision) for k, v in feed.items() if is_float(v)}
        loss, gradient = jax.value_and_grad(value)(floats)
        far = abs(float(loss) - self.record.objective) / max(abs(self.record.objective), 1e-300)
        row = Row("(loss)", "(loss)", "", output=far)
        theirs = self.record.output_gradients
        row.input_gradient = largest(
            [
                difference(observe_flax.to_numpy(gradient[p.flax]), theirs[p.torch].transpose(p.layout))
                for p in self.outputs
                if p.flax in gradient and p.torch in theirs and p.layout
            ]
        )
        if far > RELATIVE or row.input_gradient > RELATIVE:
            row.what = "loss"
            values = f"{self.record.objective:.6g} in PyTorch, {float(loss):.6g} in Flax"
            row.where = f"the loss of the same output: {values}"
            row.cause = causes.explain_loss(self.record.objective, value, floats)
            row.arrays = {f"output{k}": observe_flax.to_numpy(v) for k, v in floats.items()}
        self.extra.append(row)

    def gradients(self) -> None:
        """Compare the whole models' gradients, from the last leaf to the first."""
        found = self.flax.gradients(
            self.flax_inputs.args, self.flax_inputs.kwargs, self.objective, self.shapes.calls
        )
        for call in found.calls:
            pair = self.by_flax.get(call.path)
            theirs = self.calls.get((pair.torch.path, call.number)) if pair else None
            if pair and theirs:
                row = self.row_of[theirs.path, theirs.number]
                row.output_gradient = self._compare_gradients(pair, theirs, call)
        previous = "the loss" if self.losses else "the model's output"
        for call in reversed(self.record.calls):
            row = self.row_of.get((call.path, call.number))
            if row is None or row.output_gradient is None:
                continue
            if row.output_gradient > RELATIVE and not row.what:
                row.what = "gradient"
                row.where = (
                    f"the gradient of the code between {both(row)} and {previous}: "
                    "values are equal there, what comes back is not"
                )
                mine = next(
                    c
                    for c in found.calls
                    if (c.path, c.number) == (self.by_torch[call.path].flax.path, call.number)
                )
                row.cause = causes.explain_gradient(call, mine)
                arrays = {"torch": call.gradients[0], "flax": mine.gradients[0]}  # None: detached
                row.arrays = {side: array for side, array in arrays.items() if array is not None}
            if row.what:
                break
            previous = row.name
        self._compare_totals(found)

    def _compare_gradients(self, pair: Pair, theirs: Call, call: Call) -> float:
        differences = []
        for x, g, mine in zip(theirs.outputs, theirs.gradients, call.gradients, strict=False):
            if mine is None:
                continue
            g = np.zeros(x.shape) if g is None else g
            layout = kinds.find_layout(g, mine, pair.kind, theirs.module)
            scale = SMALL * self._gradient_size
            differences.append(np.inf if layout is None else difference(mine, g.transpose(layout), scale))
        return largest(differences)

    @property
    def _gradient_size(self) -> float:
        """The largest norm of a gradient by an output; what is far smaller may be rounding."""
        return largest(
            [float(np.linalg.norm(g)) for call in self.record.calls for g in call.gradients if g is not None]
        )

    def parameters(self) -> Iterator[tuple[Row | None, str, tuple[str, ...], kinds.Path, Callable, Callable]]:
        """All tensors: row, name, PyTorch's names, path in the model, functions of value and gradient."""
        paths = {id(variable): path for path, variable in variables(self.flax.model).items()}
        modules = self.flax.modules()
        for pair in self.pairs:
            own = variables(modules[pair.flax.path])
            prefix = f"{pair.torch.path}." if pair.torch.path else ""
            for link in pair.links:
                names = tuple(self.canonical_name(prefix + name) for name in link.sources)
                row = self.row_of.get((pair.torch.path, 0))
                yield row, names[0], names, paths[id(own[link.variable])], link.to_flax, link.gradient
        for loose in self.loose:
            yield None, loose.source, (loose.source,), loose.variable, loose.to_flax, loose.to_flax

    def canonical_name(self, name: str) -> str:
        """The first name of a parameter that several modules of PyTorch share."""
        if not hasattr(self, "_names"):
            first = {id(p): n for n, p in self.torch.model.named_parameters()}
            every = self.torch.model.named_parameters(remove_duplicate=False)
            self._names = {n: first[id(p)] for n, p in every}
        return self._names.get(name, name)

    def _compare_totals(self, found: Recording) -> None:
        """The whole gradient of each parameter: of shared ones, of those outside leaves."""
        sizes = [float(np.linalg.norm(g)) for g in self.record.gradients.values()]
        for row, name, names, path, _, gradient in self.parameters():
            if path not in found.gradients or any(n not in self.torch_parameters for n in names):
                continue
            theirs = [self.record.gradients.get(n, np.zeros(self.torch_parameters[n])) for n in names]
            mine, expected = found.gradients[path], gradient(*theirs)
            far = difference(mine, expected, SMALL * largest(sizes))
            if row is None:
                row = Row(name, observe_flax.name_of(path), "parameter", parameter_gradient=far)
                self.extra.append(row)
            elif far > (row.parameter_gradient or 0):
                row.parameter_gradient = far
            if far > RELATIVE and not row.what:
                row.what = "parameter gradient"
                row.where = f"the gradient of {name} over the whole model"
                row.cause = causes.explain_total(name, self.shared(name), mine, expected)
                row.arrays = {"torch": expected, "flax": mine}

    @property
    def torch_parameters(self) -> dict[str, tuple[int, ...]]:
        """The shapes of PyTorch's trainable parameters."""
        return {n: tuple(p.shape) for n, p in self.torch.model.named_parameters()}

    def shared(self, name: str) -> list[str]:
        """The other names of a parameter in PyTorch."""
        self.canonical_name(name)
        return [other for other, first in self._names.items() if first == name and other != name]


def describe(what: str, row: Row, case: Case) -> str:
    """Where a leaf differs, in words."""
    words = {
        "output": "the output of {}, given the same input",
        "statistics": "the running statistics of {} after the call, given the same input",
        "input gradient": "the gradient of {} by its input: its output is equal",
        "parameter gradient": "the gradient of {} by its parameters: its output is equal",
    }
    text = words[what].format(both(row))
    if what == "output" and case.local and case.local.outputs and row.output == np.inf:
        text += f": shape {case.torch.outputs[0].shape} in PyTorch, {case.local.outputs[0].shape} in Flax"
    return text


def _shapes(leaf: Leaf) -> str:
    """A leaf's weights with their shapes."""
    named = {
        name if isinstance(name, str) else observe_flax.name_of(name): x for name, x in leaf.tensors.items()
    }
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in named.items())


def both(row: Row) -> str:
    """A leaf's names."""
    return row.torch if kinds.plain(row.torch) == kinds.plain(row.flax) else f"{row.torch} (Flax: {row.flax})"


def numbered(path: str, number: int) -> str:
    """A leaf's name, with the number of its call if it is not the first."""
    return f"{path or '(model)'}{f' (call {number + 1})' if number else ''}"
