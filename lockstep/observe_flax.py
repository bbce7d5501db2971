"""A Flax NNX model, observed: a copy of it runs, every leaf call is seen, and a leaf can run alone."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lockstep import kinds
from lockstep.kinds import Path
from lockstep.observe import Call, Local, Recording, labelled
from recipe.console import UserError, explain, reason

JITTED = type(nnx.jit(lambda: None))
Visit = Callable[[Call, Any], Any]  # gets a leaf call and its output; what it returns replaces the output


def is_array(value: Any) -> bool:
    """Whether a value is an array of JAX or NumPy, for `labelled`."""
    return isinstance(value, jax.Array | np.ndarray)


def is_float(value: Any) -> bool:
    """Whether a value is an array of floating-point numbers."""
    return is_array(value) and jnp.issubdtype(value.dtype, jnp.floating)


def to_numpy(array: Any) -> np.ndarray:
    """An array as NumPy's; bfloat16 and float16 as float32."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    narrow = array.dtype in (jnp.bfloat16, jnp.float16)
    return np.asarray(array.astype(np.float32) if narrow else array)


def name_of(path: Path) -> str:
    """A path as people write it."""
    return "/".join(str(part) for part in path)


def variables(module: Any) -> dict[Path, Any]:
    """A module's variables of floating-point numbers, by path; a shared one by its first path."""
    found = {}
    for path, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Variable) and is_float(node.get_value()):
            found[path] = node
    return found


def without_jit(function: Callable) -> Callable:
    """The function inside ``nnx.jit``."""
    while isinstance(function, JITTED):
        function = function.fun
    return function


class FlaxSide:
    """A copy of a model in one precision; call its methods with JAX's 64 bits on or off accordingly.

    Args:
        model: left as it is.
        precision: ``float64`` or ``float32``.
        training: the mode into which the copy is put.

    Raises:
        UserError: the model cannot be copied.
    """

    def __init__(self, model: nnx.Module, precision: str, training: bool):
        self.precision = precision
        self.units: Callable[[str, Any], bool] = lambda path, module: False
        dtype = np.dtype(precision)

        def cast(value: Any) -> Any:
            if not is_float(value):
                return value
            return jnp.asarray(
                np.asarray(value.astype(np.float32) if value.dtype == jnp.bfloat16 else value), dtype
            )

        try:
            graph, state = nnx.split(model)
            self.model = nnx.merge(graph, jax.tree.map(cast, state), copy=True)
        except Exception as error:
            raise UserError(f"the Flax model cannot be copied: {reason(error)}") from error
        self.model.set_attributes(deterministic=not training, raise_if_not_found=False)
        self.model.set_attributes(use_running_average=not training, raise_if_not_found=False)
        self.failed: str | None = None  # the innermost module whose call ended the last pass
        self.random: list[str] = []
        self.rates: dict[str, float] = {}  # of dropout that was switched off
        self.lifted = 0  # layers that were told to compute in float32, and now do in float64
        for path, module in nnx.iter_modules(self.model):
            for name in ("dtype", "param_dtype"):
                if getattr(module, name, None) is not None and _is_float32(getattr(module, name)):
                    self.lifted += (
                        name == "dtype" and precision == "float64" and kinds.kind_of(module) != "embedding"
                    )
                    setattr(module, name, dtype)
            kind = kinds.kind_of(module)
            if precision == "float64" and getattr(module, "attention_fn", None) is nnx.dot_product_attention:
                setattr(module, "attention_fn", attention_in_float64)  # noqa: B010 - only some modules have it
            rate = "rate" if kind == "dropout" else "dropout_rate"
            if training and kinds.is_known(kind) and getattr(module, rate, 0):
                self.rates[name_of(path)] = getattr(module, rate)
                setattr(module, rate, 0.0)
                self.random.append(name_of(path))

    def modules(self) -> dict[str, Any]:
        """All modules by path."""
        return {name_of(path): module for path, module in nnx.iter_modules(self.model)}

    @contextlib.contextmanager
    def _watch(self, model: nnx.Module, visit: Visit) -> Iterator[None]:
        """Call ``visit`` after each leaf call of ``model``, by wrapping the ``__call__`` of its classes.

        Without ``nnx.jit``, in which modules are copies that nothing can be seen of.
        """
        self.failed = None
        paths = {id(module): name_of(path) for path, module in nnx.iter_modules(model)}
        stack: list[dict[str, Any]] = []
        counts: dict[str, int] = {}

        def wrap(original: Callable) -> Callable:
            def call(module: Any, *args: Any, **kwargs: Any) -> Any:
                inside = bool(stack) and (stack[-1]["unit"] or stack[-1]["module"] is module)
                if inside or id(module) not in paths:
                    return original(module, *args, **kwargs)
                for frame in stack:
                    frame["leaf"] = False
                path = paths[id(module)]
                unit = self.units(path, module)
                stack.append({"leaf": True, "unit": unit, "module": module})
                frame = stack[-1]
                try:
                    output = original(module, *args, **kwargs)
                    if not frame["leaf"]:
                        return output
                    frame["unit"] = True  # what visit calls is not to be seen
                    kind = kinds.kind_of(module)
                    if unit and not kinds.is_known(kind):
                        kind = "attention"
                    number = counts[path] = counts.get(path, -1) + 1
                    leaf_inputs = [x for x in jax.tree.leaves((args, kwargs)) if is_array(x)]
                    leaf_outputs = [x for x in jax.tree.leaves(output) if is_array(x)]
                    seen = Call(
                        path,
                        kind,
                        module,
                        kinds.canonical("flax", kind, "inputs", leaf_inputs),
                        kinds.canonical("flax", kind, "outputs", leaf_outputs),
                        arguments=(args, kwargs),
                        number=number,
                    )
                    return visit(seen, output)
                except Exception:
                    self.failed = path if self.failed is None else self.failed
                    raise
                finally:
                    stack.remove(frame)

            return call

        patched: list[tuple[type, Any]] = []
        try:
            for cls in {type(module) for _, module in nnx.iter_modules(model)}:
                if hasattr(cls, "__call__"):  # noqa: B004 - of the class, where Python looks it up
                    patched.append((cls, cls.__dict__.get("__call__")))
            wrapped = [(cls, wrap(without_jit(cls.__call__))) for cls, _ in patched]  # before any is replaced
            for cls, function in wrapped:
                cls.__call__ = function
            yield
        finally:
            for cls, own in patched:
                if own is None:
                    if "__call__" in cls.__dict__:
                        del cls.__call__
                else:
                    cls.__call__ = own

    def to_arrays(self, inputs: Any) -> Any:
        """NumPy arrays, in whatever structure, as JAX's in this precision."""

        def convert(value: Any) -> Any:
            if not is_array(value):
                return value
            return jnp.asarray(value, self.precision) if is_float(value) else jnp.asarray(value)

        return jax.tree.map(convert, inputs)

    def run(self, args: Sequence, kwargs: dict, visit: Visit = lambda call, output: output) -> Recording:
        """One forward pass of a copy of the model; ``visit`` sees each leaf call.

        An error of the model ends the pass; the recording says which.
        """
        model = nnx.clone(self.model)
        args, kwargs = self.to_arrays((tuple(args), kwargs))
        calls: list[Call] = []

        def see(call: Call, output: Any) -> Any:
            calls.append(Call(call.path, call.kind, call.module, [], [], number=call.number))
            return visit(call, output)

        with self._watch(model, see):
            try:
                output = model(*args, **kwargs)
            except UserError:
                raise
            except Exception as error:
                place = f" in {self.failed}" if self.failed else ""
                return Recording(calls, {}, stopped=f"{explain(error)}{place}")
        self.raw_output = output
        return Recording(calls, {k: to_numpy(v) for k, v in labelled(output, is_array).items()})

    def shapes(self, args: Sequence, kwargs: dict) -> Recording:
        """The leaf calls with arrays' shapes and types but no values, for pairing."""
        calls: list[Call] = []

        def hollow(arrays: list) -> list:
            kinds_of_numbers = [np.float64 if is_float(x) else np.int64 for x in arrays]
            return [
                np.broadcast_to(np.zeros((), t), x.shape)
                for x, t in zip(arrays, kinds_of_numbers, strict=True)
            ]

        def see(call: Call, output: Any) -> Any:
            inputs, outputs = hollow(call.inputs), hollow(call.outputs)
            calls.append(Call(call.path, call.kind, call.module, inputs, outputs, number=call.number))
            return output

        recording = self.run(args, kwargs, see)
        recording.calls = calls
        return recording

    def gradients(
        self, args: Sequence, kwargs: dict, objective: Callable[[Any], Any], calls: Sequence[Call]
    ) -> Recording:
        """The whole model's gradients by parameters and by every leaf's outputs.

        Args:
            args: of the model.
            kwargs: of the model.
            objective: from the model's output to a scalar.
            calls: what `shapes` saw.

        Raises:
            UserError: the objective fails.
        """
        graph, params, rest = nnx.split(self.model, nnx.Param, ...)
        args, kwargs = self.to_arrays((tuple(args), kwargs))
        shifts = [
            [jnp.zeros(x.shape, self.precision) if is_float(x) else None for x in call.outputs]
            for call in calls
        ]

        def forward(params: Any, shifts: list) -> Any:
            remaining = iter(shifts)

            def shift(call: Call, output: Any) -> Any:  # the gradient by a zero that is added
                shifted = {
                    id(x): x if zero is None else x + zero
                    for x, zero in zip(call.outputs, next(remaining), strict=True)
                }
                return jax.tree.map(lambda x: shifted.get(id(x), x), output)

            model = nnx.merge(graph, params, rest, copy=True)
            with self._watch(model, shift):
                return _scalar(objective, model(*args, **kwargs))

        try:
            value, pull = jax.vjp(forward, params, shifts)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"the Flax model has no gradient: {explain(error)}; "
                "use jax.numpy in it, or compare without backward"
            ) from error
        by_params, by_shifts = pull(jnp.ones_like(value))
        found = [
            Call(
                call.path,
                call.kind,
                None,
                [],
                [],
                [None if g is None else to_numpy(g) for g in by],
                number=call.number,
            )
            for call, by in zip(calls, by_shifts, strict=True)
        ]
        return Recording(found, {}, float(value), by_path(by_params))


def by_path(state: Any) -> dict[Path, np.ndarray]:
    """The arrays of a state of NNX, by path."""
    flat = dict(nnx.to_flat_state(state))
    return {path: to_numpy(x.get_value() if isinstance(x, nnx.Variable) else x) for path, x in flat.items()}


def attention_in_float64(*args: Any, **kwargs: Any) -> Any:
    """`nnx.dot_product_attention` without the one of jax.nn, whose softmax is always in float32."""
    return nnx.dot_product_attention(*args, **{**kwargs, "dropout_rate": kwargs.get("dropout_rate") or 1e-9})


def _is_float32(value: Any) -> bool:
    try:
        return np.dtype(value) == np.float32
    except TypeError:
        return False


def _scalar(objective: Callable[[Any], Any], output: Any) -> Any:
    try:
        value = objective(output)
    except Exception as error:
        raise UserError(f"the Flax loss cannot take the model's output: {reason(error)}") from error
    if jnp.shape(value) != ():
        raise UserError(
            f"the Flax loss must be a scalar, not an array of shape {jnp.shape(value)}; take its mean"
        )
    return value


def replay(
    module: Any,
    call: Call,
    inputs: dict[int, np.ndarray],
    cotangents: Sequence[np.ndarray],
    statistics: dict[Path, np.ndarray],
    edit: Callable[[Any], Any] = lambda module: None,
    **keywords: Any,
) -> Local:
    """Run one leaf alone on given inputs.

    Args:
        module: the leaf; a copy of it runs.
        call: how the model called it.
        inputs: what replaces each of the call's (canonical) inputs.
        cotangents: by output; without gradients if they do not fit.
        statistics: the leaf's variables that are set before.
        edit: changes the copy before it runs.
        keywords: change the call's keyword arguments.
    """
    leaves, tree = jax.tree.flatten((call.arguments[0], {**call.arguments[1], **keywords}))
    arrays = [place for place, leaf in enumerate(leaves) if is_array(leaf)]
    places = kinds.canonical("flax", call.kind, "inputs", arrays)
    for index, array in inputs.items():
        leaves[places[index]] = jnp.asarray(array, leaves[places[index]].dtype)
    floats = [place for place in places if is_float(leaves[place])]
    graph, params, rest = nnx.split(edit_copy(module, statistics, edit), nnx.Param, ...)

    def run(params: Any, values: list) -> tuple[list, Any]:
        copy = nnx.merge(graph, params, rest, copy=True)
        filled = list(leaves)
        for place, value in zip(floats, values, strict=True):
            filled[place] = value
        new_args, new_kwargs = jax.tree.unflatten(tree, filled)
        output = copy(*new_args, **new_kwargs)
        found = kinds.canonical(
            "flax", call.kind, "outputs", [x for x in jax.tree.leaves(output) if is_array(x)]
        )
        kept = {p: v.get_value() for p, v in variables(copy).items() if not isinstance(v, nnx.Param)}
        return found, kept

    values = [leaves[place] for place in floats]
    outputs, pull, kept = jax.vjp(run, params, values, has_aux=True)
    result = Local([to_numpy(x) for x in outputs], [], {}, {p: to_numpy(v) for p, v in kept.items()})
    fits = all(x.shape == c.shape for x, c in zip(outputs, cotangents, strict=False))
    if fits and len(cotangents) <= len(outputs):
        by_outputs = [
            np.zeros(x.shape, jax.dtypes.float0)
            if not is_float(x)
            else jnp.zeros_like(x)
            if c is None
            else jnp.asarray(c, x.dtype)
            for x, c in itertools.zip_longest(outputs, cotangents)
        ]
        by_params, by_values = pull(by_outputs)
        gradients = dict(zip(floats, by_values, strict=True))
        result.parameters = by_path(by_params)
        result.inputs = [to_numpy(gradients[p]) if p in gradients else None for p in places]
    return result


def edit_copy(module: Any, statistics: dict[Path, np.ndarray], edit: Callable[[Any], Any]) -> Any:
    """A copy of a leaf with some variables set and a change made."""
    copy = nnx.clone(module)
    own = variables(copy)
    for path, value in statistics.items():
        own[path].set_value(jnp.asarray(value, own[path].get_value().dtype))
    edit(copy)
    return copy
