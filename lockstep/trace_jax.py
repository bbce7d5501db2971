"""Trace a JAX model: its jaxpr, equation by equation, in float64; one tracer for every library."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from lockstep.adapters import Adapter, is_array
from lockstep.align import ancestors
from lockstep.errors import UserError, explain, own_line
from lockstep.evaluate import DTYPES, KERNELS, MOVES, POINTWISE
from lockstep.outputs import labelled
from lockstep.recorder import Operand, Recorder, once
from lockstep.trace import Edit, Gradients, Rounded, Source, Trace

WIDER = {
    np.dtype(np.float32): np.dtype(np.float64),
    np.dtype(np.float16): np.dtype(np.float64),
    np.dtype(jnp.bfloat16): np.dtype(np.float64),
    np.dtype(np.complex64): np.dtype(np.complex128),
}
NARROW = (np.dtype(np.float16), np.dtype(jnp.bfloat16))
CASTS = ("convert_element_type", "copy", "copy_p")
NOT_CALLS = ("reduce", "reduce_window", "scatter", "select_and_scatter", "custom_linear_solve", "sort")
DRAWS = {  # random numbers become this number, as in PyTorch
    "_bernoulli": True, "_normal": 0.5, "_normal_real": 0.5, "_truncated_normal": 0.5, "_gumbel": 0.5,
}  # fmt: skip
SITE = str(Path(jax.__file__).parent.parent) + "/"
LIBRARIES = tuple(
    SITE + name + "/"
    for name in ("jax", "jaxlib", "flax", "equinox", "optax", "chex", "einops", "jaxtyping", "haiku")
)
NARROWER = {np.dtype(np.float64): np.dtype(np.float32), np.dtype(np.complex128): np.dtype(np.complex64)}
JAX = (SITE + "jax/", SITE + "jaxlib/")
HERE = str(Path(__file__).parent) + "/"
PACKAGES = ("jax", "flax", "equinox", "numpy")


def is_key(x: Any) -> bool:
    """Whether an array is of random keys."""
    return jnp.issubdtype(getattr(x, "dtype", np.float64), jax.dtypes.extended)


def widen(x: np.ndarray) -> np.ndarray:
    """An array in float64 if it has a narrower type of floats."""
    return x.astype(WIDER[x.dtype]) if x.dtype in WIDER else x


Evaluate = Callable[[list[Any], Mapping[str, Any]], list[Any]]  # from operands and changed settings
Bind = Callable[[list[Any]], list[Any]]  # the same by JAX, so that it can be differentiated


@dataclass
class Step:
    """How one value of a run is made."""

    inputs: list[Any]  # nodes, or the values of literals
    known: list[bool]  # which of them are nodes
    evaluate: Evaluate
    bind: Bind
    index: int  # of the result


class Interpreter:
    """Evaluate a jaxpr with NumPy where it can, and record every equation."""

    def __init__(self, recorder: Recorder, model: "JaxModel"):
        self.recorder, self.lines = recorder, model.lines
        self.steps: dict[int, Step] = {}
        self.rules: dict[int, Step] = {}  # how values with a derivative of their own are differentiated
        self.narrowest, self.exact = model.narrowest, model.exact
        self.notes: set[str] = set()
        self.calls: list[tuple[tuple[Source, ...], bool]] = []  # lines of the calls around; of the library?
        self.names: list[str] = []  # of the jitted functions around
        known = recorder.reference.scalars if recorder.reference else []
        self.scalars = np.array(known)

    def run(self, jaxpr: Any, consts: Any, args: list[Operand]) -> list[Operand]:
        """The results of a jaxpr."""
        env: dict[Any, Operand] = {}

        def read(atom: Any) -> Operand:
            return Operand(self._literal(atom.val)) if isinstance(atom, core.Literal) else env[atom]

        for var, const in zip(jaxpr.constvars, consts, strict=True):
            env[var] = const if isinstance(const, Operand) else self._constant(const)
        env.update(zip(jaxpr.invars, args, strict=True))
        for eqn in jaxpr.eqns:
            env.update(zip(eqn.outvars, self._equation(eqn, [read(a) for a in eqn.invars]), strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _literal(self, value: Any) -> Any:
        if is_key(value):
            return value
        array = np.asarray(value)
        if array.dtype == np.float32 and array.ndim == 0:
            return np.float64(self._snap(float(str(array))))  # 0.1 was meant, not 0.10000000149
        return widen(array)

    def _snap(self, x: float) -> float:
        """A number that a rounded one stands for: one of the reference's, or a root of a whole number."""
        if not np.isfinite(x) or x == 0:
            return x
        if self.scalars.size:
            nearest = self.scalars[np.abs(self.scalars - abs(x)).argmin()]
            if abs(nearest - abs(x)) <= 1e-7 * nearest:
                return float(np.copysign(nearest, x))
        for power in (2, -2):
            whole = abs(x) ** power
            if 1.5 < whole < 4096.5 and abs(whole - round(whole)) <= 2.5e-7 * whole:
                return float(np.copysign(round(whole) ** (1 / power), x))
        return x

    def _constant(self, const: Any) -> Operand:
        if not is_array(const) or is_key(const):
            return Operand(const)
        array = np.asarray(const)
        if array.dtype == np.float32 and array.size == 1:
            array = np.full(array.shape, self._snap(float(str(array.reshape(())))))
        return self.recorder.constant(widen(array))

    # --- equations ---

    def _equation(self, eqn: Any, operands: list[Operand]) -> list[Operand]:
        name, params = eqn.primitive.name, eqn.params
        if name == "scan":
            return self._scan(eqn, operands)
        if name == "while":
            return self._while(eqn, operands)
        if name == "cond":
            which = int(np.clip(int(self.recorder.value(operands[0])), 0, len(params["branches"]) - 1))
            return self._call(eqn, params["branches"][which], operands[1:])
        if not name.startswith(NOT_CALLS):
            for value in params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns") and len(inner.invars) == len(operands):
                    made = self._call(eqn, value, operands)
                    if name.startswith("custom_"):
                        self._keep_rule(eqn, operands, made)
                    return made
        return self._operation(eqn, operands)

    def _call(self, eqn: Any, closed: Any, operands: list[Operand]) -> list[Operand]:
        jaxpr, consts = getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())
        name = str(eqn.params.get("name", ""))
        file = getattr(getattr(jaxpr, "debug_info", None), "func_filename", None) or ""
        drawn = self._draw(eqn, name, operands) if file.startswith(SITE + "jax/_src/random") else None
        if drawn is not None:
            return drawn
        library = file.startswith(JAX) and eqn.primitive.name not in ("scan", "while")
        self.calls.append((self._sources(eqn), library or bool(self.calls and self.calls[-1][1])))
        self.names.append(name.strip("_<>"))
        try:
            return self.run(jaxpr, consts, operands)
        finally:
            self.calls.pop()
            self.names.pop()

    def _draw(self, eqn: Any, name: str, operands: list[Operand]) -> list[Operand] | None:
        """A fixed number for random ones; None for a distribution without one."""
        if name == "_uniform":
            fill: Any = 0.5 * sum(float(self.recorder.value(o)) for o in operands[1:3])
        elif name == "_randint":
            fill = int(self.recorder.value(operands[1]))
        elif name == "_shuffle":
            return [operands[1]]
        elif name in DRAWS:
            fill = DRAWS[name]
        else:
            return None
        self.notes.add("random numbers are replaced by fixed ones, so that dropout keeps everything")
        aval = eqn.outvars[0].aval
        value = np.full(aval.shape, fill, WIDER.get(np.dtype(aval.dtype), aval.dtype))
        return self.recorder.record("random", [], [value], sources=self._sources(eqn))

    def _operation(self, eqn: Any, operands: list[Operand]) -> list[Operand]:
        recorder, name = self.recorder, eqn.primitive.name
        params = self._settings(eqn)
        moves = name in MOVES or name in CASTS
        weights = [o.ids is not None for o in operands]
        indices = operands[1:] if name in ("dynamic_slice", "gather") else []
        fixed = not any(o.node is not None and recorder.trace.nodes[o.node].data for o in indices)
        ids: list | None = None
        if name == "gather" and weights[0] and fixed:
            moves, ids = True, [self._bind(eqn, [operands[0].ids, recorder.value(operands[1])], params)]
        elif name == "dynamic_slice" and weights[0]:
            ids = [MOVES[name](operands[0].ids, *map(recorder.value, indices), **params)]
        elif name == "convert_element_type" and weights[0] and np.dtype(params["new_dtype"]).kind in "fc":
            ids = [operands[0].ids]
        elif name in MOVES and weights and all(weights):
            ids = _listed(MOVES[name](*[o.ids for o in operands], **params))
        if ids is None and (not moves or name == "concatenate"):
            self._use(name, params, operands)
        values = [recorder.value(o) for o in operands]
        sources = self._sources(eqn)

        def evaluate(values: list[Any], changes: Mapping[str, Any]) -> list[Any]:
            return self._round(eqn, self._evaluate(eqn, values, params | dict(changes)))

        outs = evaluate(values, {})
        literals = [v.item() if o.node is None and np.ndim(v) == 0 and not is_key(v) and is_array(v) else None
                    for o, v in zip(operands, values, strict=True)]  # fmt: skip
        shown = {k: v for k, v in ((k, _plain(v)) for k, v in params.items()) if v is not None}
        if any(v is not None for v in literals):
            shown["literals"] = literals
        narrow = [str(v.aval.dtype) for v in eqn.outvars if _dtype(v) in NARROW and self.narrowest > 2]
        if narrow:
            shown["rounded"] = narrow[0]
        if self.names and self.names[-1]:
            shown["within"] = self.names[-1]
        made = recorder.record(
            name, operands, outs, moves=moves, ids=ids, params=shown, sources=sources,
            moved=(lambda x: _listed(MOVES[name](x, **params)) if name in MOVES else [x]) if moves else None,
            pointwise=name in POINTWISE, column_axes=_column_axes(name, params, operands),
            module=_module(eqn),
        )  # fmt: skip
        self._keep(operands, made, evaluate, lambda values: _listed(eqn.primitive.bind(*values, **params)))
        return made

    def _keep(self, operands: list[Operand], made: list[Operand], evaluate: Evaluate, bind: Bind) -> None:
        """Remember how results are made, so that they can be made again."""
        inputs = [o.value if o.node is None else o.node for o in operands]
        known = [o.node is not None for o in operands]
        for index, operand in enumerate(made):
            if operand.node is not None:
                self.steps[operand.node] = Step(inputs, known, evaluate, bind, index)

    def _keep_rule(self, eqn: Any, operands: list[Operand], made: list[Operand]) -> None:
        """Remember a derivative that the model defines itself, unless its types were widened."""
        given = [np.asarray(o.value).dtype for o in operands if not is_key(o.value)]
        if given != [v.aval.dtype for v in eqn.invars if not is_key(v.aval)]:
            return

        def bind(values: list[Any]) -> list[Any]:
            found = eqn.primitive.get_bind_params(eqn.params)
            functions, params = found if isinstance(found, tuple) else ((), found)
            return _listed(eqn.primitive.bind(*functions, *values, **params))

        inputs = [o.value if o.node is None else o.node for o in operands]
        known = [o.node is not None for o in operands]
        for index, operand in enumerate(made):
            if operand.node is not None and operand.node not in inputs:
                self.rules[operand.node] = Step(inputs, known, lambda values, _: [], bind, index)

    def _settings(self, eqn: Any) -> dict[str, Any]:
        params = dict(eqn.params)
        for key in DTYPES:
            asked = params.get(key)
            if asked is None or jnp.issubdtype(asked, jax.dtypes.extended):
                continue
            if np.dtype(asked) in WIDER:
                params[key] = WIDER[np.dtype(asked)]
                if key == "new_dtype" and np.dtype(asked) == np.float32 and self._lifted(eqn):
                    self.recorder.casts.add(self._sources(eqn))
        return params

    def _lifted(self, eqn: Any) -> bool:
        return eqn.invars[0].aval.dtype == np.float64

    def _evaluate(self, eqn: Any, values: list[Any], params: dict[str, Any]) -> list[Any]:
        kernel = None if self.exact else KERNELS.get(eqn.primitive.name)
        if kernel and not any(is_key(v) for v in values):
            with np.errstate(all="ignore"):
                out = kernel(*[np.asarray(v) for v in values], **params)
            if out is not None:
                return _listed(out)
        return _listed(self._bind(eqn, values, params))

    def _bind(self, eqn: Any, values: list[Any], params: dict[str, Any]) -> Any:
        """JAX's own kernel."""
        arrays = [v if is_key(v) else jnp.asarray(v) for v in values]
        with np.errstate(invalid="ignore"):  # JAX makes an integer of nan, where indices are out of range
            out = eqn.primitive.bind(*arrays, **params)
        back = lambda x: x if is_key(x) else np.asarray(x)  # noqa: E731
        return [back(x) for x in out] if eqn.primitive.multiple_results else back(out)

    def _round(self, eqn: Any, outs: list[Any]) -> list[Any]:
        """A type narrower than the model's own parameters belongs to the model; wider is lifted."""
        for index, (out, var) in enumerate(zip(outs, eqn.outvars, strict=True)):
            if is_key(out):
                continue
            out = np.asarray(out)
            asked = _dtype(var)
            if asked in NARROW and self.narrowest > 2:
                out = out.astype(asked)
            if asked is not None and asked.kind in "iu":  # NumPy sums small integers in int64
                out = out.astype(asked, copy=False)
            outs[index] = widen(out)
        return outs

    def _use(self, name: str, params: dict[str, Any], operands: list[Operand]) -> None:
        for position, operand in enumerate(operands):
            kernel, convolved = position == 1, name == "conv_general_dilated"
            ids = operand.roots if convolved or name == "dot_general" else operand.ids
            if ids is None:
                continue
            others = [o for o in operands if o is not operand and o.node is not None]
            other = next((o for o in others if o.ids is None), others[0] if others else None)
            role = {"add_any": "add", "concatenate": "cat"}.get(name, name)
            if name == "dot_general":
                (ca, cb), (ba, bb) = params["dimension_numbers"]
                inner, batch = ((ca, ba), (cb, bb))[position]
                if len(inner) > 1 and self.recorder.binder and other and other.node is not None:
                    lies = (cb, ca)[position]
                    inner = [inner[i] for i in self.recorder.binder.order(other.node, other.value, lies)]
                free = [i for i in range(ids.ndim) if i not in (*inner, *batch)]
                sizes = [int(np.prod([ids.shape[i] for i in axes])) for axes in (batch, inner, free)]
                role, ids = "contract", ids.transpose(*batch, *inner, *free).reshape(sizes)
            elif convolved and not kernel:
                ids = ids.transpose(params["dimension_numbers"].lhs_spec)
                role, ids = "image", once(ids.reshape(-1, *ids.shape[2:]))
            elif convolved:
                role, ids = "conv", ids.transpose(params["dimension_numbers"].rhs_spec)
                if all(n == 1 for n in ids.shape[2:]) and params["feature_group_count"] == 1:
                    role, ids = "contract", ids.reshape(ids.shape[:2]).T[None]
            elif name == "gather" and position == 0:
                role, ids = ("gather", ids[None]) if ids.ndim == 2 else ("index", ids)
            self.recorder.use(role, operand, ids, other)

    # --- loops ---

    def _scan(self, eqn: Any, operands: list[Operand]) -> list[Operand]:
        """Every iteration, with the slices of stacked weights."""
        p, recorder, sources = eqn.params, self.recorder, self._sources(eqn)
        first, second = p["num_consts"], p["num_consts"] + p["num_carry"]
        consts, carry, stacked = operands[:first], operands[first:second], operands[second:]
        rows: list[list[Operand]] = []
        order = range(p["length"])
        for i in reversed(order) if p["reverse"] else order:
            parts = []
            for x in stacked:
                value = recorder.value(x)[i]
                ids = [x.ids[i]] if x.ids is not None else None
                value = value if is_key(value) else np.asarray(value)
                part = recorder.record(
                    "scan slice", [x], [value], moves=True, ids=ids, sources=sources,
                    moved=lambda places, i=i: [places[i]],
                )  # fmt: skip
                take = lambda values, _=None, i=i: [values[0][i]]  # noqa: E731
                self._keep([x], part, take, take)
                parts += part
            out = self._call(eqn, p["jaxpr"], [*consts, *carry, *parts])
            carry = out[: p["num_carry"]]
            rows.append(out[p["num_carry"] :])
        rows = rows[::-1] if p["reverse"] else rows
        found = list(carry)
        for index, var in enumerate(eqn.outvars[p["num_carry"] :]):
            column = [row[index] for row in rows]
            values = [recorder.value(o) for o in column]
            if column and is_key(values[0]):
                found.append(Operand(jnp.stack(values)))
                continue
            array = np.stack([np.asarray(value) for value in values]) if column else np.zeros(var.aval.shape)
            ids = (
                [np.stack([o.ids for o in column if o.ids is not None])]
                if column and all(o.ids is not None for o in column)
                else None
            )
            made = recorder.record("scan stack", column, [array], moves=True, ids=ids, sources=sources)
            self._keep(column, made, lambda values, _: [np.stack(values)], lambda values: [jnp.stack(values)])
            found += made
        return found

    def _while(self, eqn: Any, operands: list[Operand]) -> list[Operand]:
        p = eqn.params
        n, m = p["cond_nconsts"], p["body_nconsts"]
        tested, body, carry = operands[:n], operands[n : n + m], operands[n + m :]
        while bool(self.recorder.value(self._call(eqn, p["cond_jaxpr"], [*tested, *carry])[0])):
            carry = self._call(eqn, p["body_jaxpr"], [*body, *carry])
        return carry

    # --- places ---

    def _sources(self, eqn: Any) -> tuple[Source, ...]:
        """The user's lines, innermost first; within the library's jitted functions those of the call."""
        outer, library = self.calls[-1] if self.calls else ((), False)
        if library:
            return outer
        if id(eqn) not in self.lines:
            self.lines[id(eqn)] = _own_lines(eqn.source_info.traceback)
        own = self.lines[id(eqn)]
        if not own:
            return outer
        rest = [line for line in outer if line not in own]
        return (*own, *rest)[:6]


def _own_lines(traceback: Any) -> tuple[Source, ...]:
    """The user's frames of a traceback, up to where the innermost jit was called."""
    found: list[Source] = []
    for frame in traceback.frames if traceback else ():
        name = frame.file_name
        if name.startswith(HERE):
            break
        if name.startswith(SITE + "jax/_src/pjit") and found:
            break  # a jitted function is traced once: what is around it is its first call
        if not name.startswith((*LIBRARIES, "<frozen", "<string>")):
            found.append((name, int(getattr(frame, "line_num", 0) or frame.start_line)))
    return tuple(found)


def _dtype(var: Any) -> np.dtype | None:
    return None if is_key(var.aval) else np.dtype(var.aval.dtype)


def _module(eqn: Any) -> str:
    """The module's path, where the library names its scopes."""
    words = [w for w in str(eqn.source_info.name_stack).split("/") if w and "(" not in w]
    return "/".join(
        w for w in words if w not in ("checkpoint", "rematted_computation", "while", "body", "closed_call")
    )


def _column_axes(name: str, params: dict[str, Any], operands: list[Operand]) -> tuple[int, ...] | None:
    if name == "conv_general_dilated":
        return (params["dimension_numbers"].out_spec[1],)
    if name != "dot_general":
        return None
    (ca, cb), (ba, bb) = params["dimension_numbers"]
    free = [np.ndim(o.value) - len(c) - len(b) for o, c, b in zip(operands, (ca, cb), (ba, bb), strict=True)]
    batch = range(len(ba))  # there a stack of weights has one for each place
    if operands[1].ids is not None:
        return (*batch, *range(len(ba) + free[0], len(ba) + free[0] + free[1]))
    return (*batch, *range(len(ba), len(ba) + free[0])) if not ba or operands[0].ids is not None else None


def _listed(out: Any) -> list[Any]:
    return list(out) if isinstance(out, list | tuple) else [out]


def _plain(value: Any) -> Any:
    """A setting as numbers, strings and lists; None if it is something else."""
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        items = [_plain(v) for v in value]
        return None if any(v is None for v in items) else items
    return None


class JaxModel:
    """A JAX model as one side of a comparison.

    Args:
        adapter: of `adapters.adapt`.
        candidates: (args, kwargs) in the forms that the model may take, likeliest first.
        loss: from the output to a scalar.
        exact: evaluate every primitive by JAX.
    """

    framework = "JAX"
    everything = False

    def __init__(
        self, adapter: Adapter, candidates: list[tuple[tuple, dict]], loss: Any = None, exact: bool = False
    ):
        self.adapter, self.loss, self.exact = adapter, loss, exact
        floats = [x for x in adapter.leaves if not is_key(x) and jnp.issubdtype(x.dtype, jnp.floating)]
        self.narrowest = min((np.dtype(x.dtype).itemsize for x in floats), default=4)
        self.lines: dict[int, tuple] = {}
        self.notes: list[str] = []
        problems = []
        for args, kwargs in candidates:
            try:
                self._prepare(args, kwargs)
                return
            except UserError:
                raise
            except Exception as error:
                problems.append(error)
        first = problems[0]
        line = own_line(first, (*LIBRARIES, HERE, "<"))
        told = "; port_inputs gives it others" if len(candidates) > 1 else ""
        raise UserError(f"the JAX model cannot take these inputs: {explain(first)}{line}{told}") from first

    def _prepare(self, args: tuple, kwargs: dict) -> None:
        """Make the jaxpr: in float64, or in the model's own types if it insists on them."""
        self.args, self.kwargs = args, kwargs
        dynamic, self.static = {}, {}
        for label, value in {**dict(enumerate(args)), **kwargs}.items():
            leaves = jax.tree.leaves(value)
            arrays = leaves and all(is_array(leaf) for leaf in leaves)
            (dynamic if arrays else self.static)[str(label)] = value
        self.wide = True
        with jax.enable_x64(True), _on_cpu():
            self.dynamic = jax.tree.map(_as_jax, dynamic)
            self.leaves = [x if is_key(x) else _shape_of(x, WIDER) for x in self.adapter.leaves]
            try:
                self.closed, self.shape = self._jaxpr()
            except TypeError as error:
                try:  # what asks for float32 by name cannot be traced in float64
                    self.wide = False
                    self.dynamic = jax.tree.map(_narrow, self.dynamic)
                    self.leaves = [x if is_key(x) else _shape_of(x, NARROWER) for x in self.leaves]
                    self.closed, self.shape = self._jaxpr()
                except Exception:
                    raise error from None

    def _jaxpr(self) -> tuple[Any, Any]:
        make = jax.make_jaxpr(self._run, return_shape=True)
        try:
            closed, shape = make(self.leaves, self.dynamic)
        except jax.errors.ConcretizationTypeError:  # Python reads a number that no input decides
            with jax.ensure_compile_time_eval():
                closed, shape = make(self.leaves, self.dynamic)
        # Copies: while JAX's own is alive, it takes that for the model's NumPy array in float32 too.
        consts = [np.array(x) if isinstance(x, np.ndarray) else x for x in closed.consts]
        return core.ClosedJaxpr(closed.jaxpr, consts), shape

    def _run(self, leaves: list[Any], dynamic: dict[str, Any]) -> dict[str, Any]:
        every = {**self.static, **dynamic}
        args = tuple(every[str(i)] for i in range(len(self.args)))
        out, state = self.adapter.call(leaves, args, {k: every[k] for k in self.kwargs})
        found = {"outputs": labelled(out, is_array), "state": state}
        if self.loss is not None:
            found["loss"] = self.loss(out)
            if np.shape(found["loss"]) != ():
                raise UserError("the JAX loss must be a scalar")
        return found

    # --- Model ---

    def trace(
        self,
        reference: Trace | None = None,
        weights: np.ndarray | None = None,
        replace: Mapping[int, np.ndarray] | None = None,
        before: Trace | None = None,
    ) -> Trace:
        """See `Model.trace`."""
        recorder = Recorder("JAX", reference, weights, replace, self.everything, before)
        interpreter = Interpreter(recorder, self)
        adapter = self.adapter
        arrays = {
            n: x if is_key(x) else widen(np.asarray(x))
            for n, x in zip(adapter.names, adapter.leaves, strict=True)
        }
        with jax.enable_x64(True), _on_cpu():
            made = iter(
                recorder.leaves(
                    (name, array, name in adapter.trainable, name in adapter.tables)
                    for name, array in arrays.items()
                    if not is_key(array)
                )
            )
            operands = [Operand(x) if is_key(x) else next(made) for x in arrays.values()]
            for path, x in jax.tree_util.tree_flatten_with_path(self.dynamic)[0]:
                label = "".join(map(str, path))
                operands.append(Operand(x) if is_key(x) else recorder.input(label, widen(np.asarray(x))))
            outs = interpreter.run(self.closed.jaxpr, self.closed.consts, operands)
            found = jax.tree.unflatten(jax.tree.structure(self.shape), outs)
            trace = recorder.trace
            for label, operand in found["outputs"].items():
                trace.outputs[label] = recorder.keep(operand)
            after = {name: recorder.keep(operand) for name, operand in found["state"].items()}
            trace.state = {
                name: node for name, node in after.items() if trace.nodes[node].kind != "parameter"
            }
            if self.loss is not None:
                trace.loss = recorder.keep(found["loss"])
        if not trace.outputs:
            raise UserError("the JAX model returns no array, so there is nothing to compare")
        trace.notes = [*sorted(interpreter.notes), *recorder.describe_casts()]
        if not self.wide:
            trace.notes.append("traced in float32, because the model insists on it; computed in float64")
        numbers = {abs(n.scalar) for n in trace.nodes if n.scalar}
        numbers |= {abs(v) for n in trace.nodes for v in n.params.get("literals", ()) if v}
        trace.scalars = sorted(float(v) for v in numbers)
        trace.versions = _versions()
        self.steps, self.rules, self.traced = interpreter.steps, interpreter.rules, trace
        self.replaced = set(replace or ())
        recorder.finish()
        return trace

    def replay(
        self,
        trace: Trace,
        changed: Mapping[int, np.ndarray],
        edits: Mapping[int, Edit] | None = None,
        until: int | None = None,
    ) -> dict[int, np.ndarray]:
        """See `Model.replay`."""
        found, edits, lost = dict(changed), edits or {}, set()
        with jax.enable_x64(True), _on_cpu(), np.errstate(all="ignore"):
            for node in trace.nodes[min([*found, *edits]) : None if until is None else until + 1]:
                step = self.steps.get(node.id)
                touched = any(i in found or i in lost for i in node.inputs) or node.id in edits
                if node.id in changed or step is None or not touched:
                    continue
                edit = edits.get(node.id, Edit())
                try:
                    values = [
                        (found[i] if i in found else trace.values[i]) if known else i
                        for i, known in zip(step.inputs, step.known, strict=True)
                    ]
                    for position, change in edit.operands.items():
                        values[position] = change(np.asarray(values[position]))
                    found[node.id] = np.asarray(step.evaluate(values, edit.params)[step.index])
                except Exception:  # another shape, or a value that was not kept
                    lost.add(node.id)
        return found

    def gradients(
        self, weights: np.ndarray, cotangents: Mapping[str, np.ndarray], without: str = ""
    ) -> Gradients:
        """See `Model.gradients`: of the operations of the last trace, with what was widened there."""
        trace = self.traced
        ends = [trace.loss] if trace.loss is not None else [trace.outputs[k] for k in cotangents]
        needed = sorted(ancestors(trace.nodes, *ends))
        steps = self.steps | self.rules
        fixed = self.replaced | set(needed) - set(steps) - {leaf.node for leaf in trace.leaves}

        def objective(numbers: list[Any], given: dict[int, Any]) -> Any:
            env: dict[int, Any] = {leaf.node: x for leaf, x in zip(trace.leaves, numbers, strict=True)}
            env |= given
            for node in (trace.nodes[n] for n in needed if n not in env):
                step = steps[node.id]
                values = [
                    env[i] if known else i if is_key(i) else jnp.asarray(i)
                    for i, known in zip(step.inputs, step.known, strict=True)
                ]
                if without == "stop_gradient" and node.op == "stop_gradient":
                    env[node.id] = values[0]
                elif without == "maximum" and node.op in ("max", "min") and node.id not in self.rules:
                    first = values[0] > values[1] if node.op == "max" else values[0] < values[1]
                    env[node.id] = jnp.where(first, *values)
                else:
                    env[node.id] = step.bind(values)[step.index]
            if trace.loss is not None:
                return env[trace.loss].reshape(()).real
            return sum(((env[trace.outputs[k]] * v).sum().real for k, v in cotangents.items()), jnp.zeros(()))

        with jax.enable_x64(True), _on_cpu():
            parts = [weights[leaf.start : leaf.stop].reshape(leaf.shape) for leaf in trace.leaves]
            real = [
                x if np.iscomplexobj(trace.values.get(leaf.node, x)) else np.real(x)
                for x, leaf in zip(parts, trace.leaves, strict=True)
            ]
            given = {n: trace.values[n] for n in fixed}
            # Compiled once, because each operation by itself takes longer to compile than to run.
            loss, grads = jax.jit(jax.value_and_grad(objective))(real, given)
        found = np.full(weights.shape, np.nan, weights.dtype)
        for leaf in reversed(trace.leaves):
            grad = grads.pop()
            if leaf.trainable or leaf.name in self.adapter.plain:
                found[leaf.start : leaf.stop] = np.asarray(grad).ravel().conj()
        return Gradients(float(loss), found)

    def rounded(self, weights: np.ndarray) -> Rounded:
        """See `Model.rounded`; without the noise floor, which is the reference's."""
        if any(getattr(x, "dtype", None) in (np.float64, np.complex128) for x in self.closed.consts):
            jax.clear_caches()  # of operations that were traced with these arrays in float64
        with jax.enable_x64(False), _on_cpu(), _fixed_draws(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that float64, which the trace asked for, is float32 here
            leaves = [x if is_key(x) else _narrow(x) for x in self._leaves(weights)]
            dynamic = jax.tree.map(_narrow, self.dynamic)
            try:
                outputs = self._run(leaves, dynamic)["outputs"]  # not compiled: XLA would simplify sums
            except Exception as error:
                words = f"the JAX model cannot run in float32: {explain(error)}; compare with float32=False"
                raise UserError(words) from error
        return Rounded({k: np.asarray(v).astype(np.float64) for k, v in outputs.items()}, {})

    def _leaves(self, weights: np.ndarray) -> list[Any]:
        at, found = 0, []
        for x in self.adapter.leaves:
            if not is_key(x) and jnp.issubdtype(x.dtype, jnp.inexact):
                numbers = weights[at : at + x.size].reshape(x.shape)
                at += x.size
                x = numbers if np.iscomplexobj(x) else np.real(numbers)
            found.append(x)
        return found


class _fixed_draws:
    """`jax.random`'s functions give fixed numbers, as the tracer has them."""

    def __enter__(self) -> None:
        self.old = {name: getattr(jax.random, name) for name in ("bernoulli", "normal", "uniform")}

        def fixed(fill: Any) -> Callable[..., Any]:
            def draw(key: Any, *args: Any, shape: Any = None, dtype: Any = None, **_: Any) -> Any:
                sizes = (
                    shape if shape is not None else next((a for a in args if isinstance(a, tuple | list)), ())
                )
                return jnp.full(sizes, fill, dtype)

            return draw

        jax.random.bernoulli, jax.random.normal = fixed(True), fixed(0.5)
        jax.random.uniform = fixed(0.5)

    def __exit__(self, *error: Any) -> None:
        for name, function in self.old.items():
            setattr(jax.random, name, function)


class _on_cpu:
    """Run on the CPU, with matrix products of full precision."""

    def __enter__(self) -> None:
        self.inner = [jax.default_device(jax.devices("cpu")[0]), jax.default_matmul_precision("highest")]
        for context in self.inner:
            context.__enter__()

    def __exit__(self, *error: Any) -> None:
        for context in reversed(self.inner):
            context.__exit__(*error)


def _as_jax(x: Any) -> Any:
    array = np.asarray(x) if not is_key(x) else None
    return x if array is None else jnp.asarray(widen(array))


def _narrow(x: Any) -> Any:
    return x if is_key(x) else jnp.asarray(x, NARROWER.get(np.dtype(x.dtype), x.dtype))


def _shape_of(x: Any, types: Mapping[Any, Any]) -> jax.ShapeDtypeStruct:
    """What a jaxpr is made of: the numbers themselves would be a copy of all weights."""
    dtype = np.dtype(x.dtype)
    return jax.ShapeDtypeStruct(np.shape(x), types.get(dtype, dtype))


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
