"""Compare any PyTorch model with its Flax NNX port, layer by layer, forward and backward.

Three passes in float64: both models run freely; each Flax layer runs on PyTorch's own input, so that one
fault is one row; and backward. In float32 differences are measured against the noise floor: how far PyTorch
is from itself with its weights moved by one unit in the last place.
"""

from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

from lockstep import kinds
from lockstep.layers import EPSILON32, Inputs, Layers
from lockstep.observe import NOISE, RELATIVE, SMALL, Recording, difference, largest
from lockstep.observe_flax import JITTED, FlaxSide, name_of, variables
from lockstep.observe_torch import TorchSide
from lockstep.pairing import leaves_of, pair_leaves, pair_loose
from lockstep.result import Result, Row
from lockstep.steps import compare_steps
from recipe.console import UserError


def compare(
    torch_model: torch.nn.Module,
    flax_model: nnx.Module,
    inputs: Any,
    *,
    flax_inputs: Any = None,
    pairs: Mapping[str, str] | None = None,
    copy_weights: bool = True,
    loss: tuple[Callable, Callable] | None = None,
    optimizers: tuple[Any, Any] | None = None,
    steps: int = 10,
    backward: bool = True,
    float32: bool = True,
) -> Result:
    """Compare two models; neither is changed.

    Args:
        torch_model: its mode, train or eval, is that of both.
        flax_model: the port.
        inputs: an array (NumPy or PyTorch), a tuple of arguments or a dict of keyword arguments, as the
            PyTorch model takes them. Images are given to Flax with their channels last where that fits.
        flax_inputs: the same as the Flax model takes them, if that is something else.
        pairs: layers that belong together, {"torch.path": "flax/path"}, where the names and the order of
            calls do not say so.
        copy_weights: compare the code only, with PyTorch's weights in both; False: compare weights too.
        loss: two functions, each from its model's output to a scalar. Default: the sum of all outputs
            multiplied with fixed random numbers.
        optimizers: a PyTorch optimizer or learning-rate scheduler (or a function from parameters to one), and
            an Optax transformation. Both models take ``steps`` training steps on the same inputs.
        steps: how many.
        backward: compare gradients.
        float32: compare in float32 too.

    Returns:
        Rows, the first difference and notes. `Row.what` is one of ``weights``, ``input`` (the code before a
        layer), ``output``, ``statistics``, ``setting``, ``loss``, ``input gradient``, ``parameter gradient``,
        ``gradient`` (of the code after a layer), ``float32``, ``parameter`` and ``momentum`` (of a step).

    Raises:
        UserError: not a module, inputs that a model cannot take, a loss that is not a scalar, a path that
            does not exist.
    """
    _check(torch_model, flax_model, loss, optimizers, pairs)
    given = _as_inputs(inputs)
    other = None if flax_inputs is None else _as_inputs(flax_inputs)
    notes: list[str] = []
    with jax.enable_x64(True):
        layers = _observe(torch_model, flax_model, given, other, dict(pairs or {}), loss, backward)
        if copy_weights:
            _copy_weights(layers)
        else:
            layers.weights()
        layers.forward()
        forward_equal = _runs_equal(layers)
        if forward_equal and backward:
            layers.loss()
            if _first(layers) is None and layers.has_objective:
                layers.gradients()
        elif not forward_equal and _first(layers) is None:
            _blame_first(layers)
        notes += _notes(layers)
        rows = [*layers.rows, *layers.extra]
        first = _first(layers)
        if first is None and optimizers:
            row = compare_steps(layers, torch_model, optimizers, steps)
            rows += [row]
            first = row if row.what else None
    if float32 and forward_equal:
        with jax.enable_x64(False):
            _compare_float32(torch_model, flax_model, layers, loss, backward, copy_weights)
        worse = next((row for row in rows if row.what == "float32"), None)
        first = first or worse
    for row in rows:
        if row.what:
            row.verdict = "different"
        elif row.verdict == "equal" and (row.free or 0) > RELATIVE:
            row.verdict = "follows"
    return Result(
        rows + _not_compared(layers), first, notes, steps if optimizers and not first else 0, float32
    )


def _check(torch_model: Any, flax_model: Any, loss: Any, optimizers: Any, pairs: Any) -> None:
    if isinstance(torch_model, nnx.Module) and isinstance(flax_model, torch.nn.Module):
        raise UserError("the models are exchanged: give the PyTorch model first, then the Flax model")
    if not isinstance(torch_model, torch.nn.Module):
        raise UserError(f"the PyTorch model must be a torch.nn.Module, not {_kind(torch_model)}")
    if not isinstance(flax_model, nnx.Module):
        linen = any(cls.__module__.startswith("flax.linen") for cls in type(flax_model).__mro__)
        hint = "; modules of flax.linen cannot be compared" if linen else ""
        raise UserError(f"the Flax model must be a flax.nnx.Module, not {_kind(flax_model)}{hint}")
    if pairs is not None and not isinstance(pairs, Mapping):
        raise UserError(f"pairs must be a dictionary of paths, not {_kind(pairs)}")
    for name, both in (("loss", loss), ("optimizers", optimizers)):
        if both is not None and not (isinstance(both, tuple | list) and len(both) == 2):
            raise UserError(f"{name} must be a pair: PyTorch's and Flax's")


def _kind(value: Any) -> str:
    if isinstance(value, type | FunctionType):
        return f"the {'class' if isinstance(value, type) else 'function'} {value.__name__}; call it"
    if isinstance(value, JITTED):
        return "what nnx.jit makes of it; give the module itself"
    return type(value).__name__


def _as_inputs(inputs: Any) -> Inputs:
    def convert(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach().cpu().numpy()
        return np.asarray(value) if isinstance(value, jax.Array) else value

    if isinstance(inputs, Mapping):
        return Inputs((), jax.tree.map(convert, dict(inputs)))
    args = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    return Inputs(jax.tree.map(convert, args), {})


def _observe(
    torch_model: Any,
    flax_model: Any,
    inputs: Inputs,
    flax_inputs: Inputs | None,
    overrides: dict[str, str],
    loss: Any,
    backward: bool,
) -> Layers:
    """Run both once and pair their layers."""
    side = TorchSide(torch_model, "float64")
    record = side.run(inputs.args, inputs.kwargs, loss and loss[0], backward=backward)
    flax = FlaxSide(flax_model, "float64", torch_model.training)
    forced = {path.strip("/") for path in overrides.values()}
    units = {call.kind for call in record.calls if call.kind in kinds.UNITS}
    flax.units = lambda path, module: path in forced or _is_unit(module, units)
    found, shapes = _find_inputs(flax, inputs, flax_inputs, record)
    if shapes.stopped and not shapes.calls:
        raise UserError(
            f"the Flax model cannot take these inputs: {shapes.stopped}; "
            "if it takes them in another form, give flax_inputs"
        )
    theirs = leaves_of(record.calls, side.tensors)
    ours = leaves_of(shapes.calls, variables)
    pairs = pair_leaves(theirs, ours, overrides)
    done = {id(leaf) for pair in pairs for leaf in (pair.torch, pair.flax)}
    unpaired = tuple([leaf for leaf in leaves if id(leaf) not in done] for leaves in (theirs, ours))
    # What is in no leaf that was called, e.g. a position embedding.
    in_torch = {f"{leaf.path}.{name}" if leaf.path else name for leaf in theirs for name in leaf.tensors}
    every = dict(side.model.named_parameters())
    in_torch |= {n for n, p in every.items() if any(p is every.get(m) for m in in_torch)}
    modules = flax.modules()
    in_flax = {id(v) for leaf in ours for v in variables(modules[leaf.path]).values()}
    loose = pair_loose(
        {n: p.detach().numpy() for n, p in every.items() if n not in in_torch},
        {p: v for p, v in variables(flax.model).items() if id(v) not in in_flax and isinstance(v, nnx.Param)},
    )
    layers = Layers(side, flax, inputs, found, record, shapes, pairs, loose, loss, backward)
    layers.unpaired = unpaired
    paired = {one.variable for one in loose}
    layers.unused = [
        name_of(path)
        for path, variable in variables(flax.model).items()
        if isinstance(variable, nnx.Param) and id(variable) not in in_flax and path not in paired
    ]
    for pair in pairs:
        module, theirs_module = modules[pair.flax.path], pair.torch.module
        if pair.kind == "batch norm" and hasattr(module, "use_running_average"):
            kept = getattr(theirs_module, "running_mean", None) is not None
            module.use_running_average = kept and not theirs_module.training
    return layers


def _is_unit(module: Any, units: set[str]) -> bool:
    kind = kinds.kind_of(module)
    if kind in units:
        return True
    if "attention" in units and not kinds.is_known(kind):
        children = {str(key) for key, _ in nnx.iter_children(module)}
        return kinds.is_attention(children)
    return False


def _find_inputs(
    flax: FlaxSide, inputs: Inputs, given: Inputs | None, record: Recording
) -> tuple[Inputs, Recording]:
    """The inputs in the layout that the Flax model takes, and its calls."""
    if given is not None:
        return given, flax.shapes(given.args, given.kwargs)
    leaves = [x for x in jax.tree.leaves((inputs.args, inputs.kwargs)) if isinstance(x, np.ndarray)]
    shapes = {x.shape for x in leaves if x.ndim > 2}
    users = [c for c in record.calls if c.inputs and c.inputs[0].shape in shapes]
    kind = users[0].kind if users else ""
    best: tuple[Inputs, Recording] | None = None
    for choice in range(3):

        def arrange(value: Any, choice: int = choice) -> Any:
            if not isinstance(value, np.ndarray) or value.ndim < 3:
                return value
            return value.transpose(kinds.layouts(value.ndim, kind)[choice])

        args, kwargs = jax.tree.map(arrange, (inputs.args, inputs.kwargs))
        tried = Inputs(args, kwargs), flax.shapes(args, kwargs)
        if not tried[1].stopped:
            return tried
        if best is None or len(tried[1].calls) > len(best[1].calls):
            best = tried
        if not shapes:
            break
    assert best is not None
    return best


def _copy_weights(layers: Layers) -> None:
    """Set Flax's parameters and statistics to PyTorch's."""
    modules = layers.flax.modules()
    for pair in layers.pairs:
        tensors = layers.torch.tensors(layers.torch.model.get_submodule(pair.torch.path))
        tensors |= {
            name: x for name, x in layers.calls[pair.torch.path, 0].statistics.items() if name in tensors
        }
        own = variables(modules[pair.flax.path])
        for link in pair.links:
            variable = own[link.variable]
            value = link.to_flax(*(tensors[name] for name in link.sources))
            variable.set_value(jax.numpy.asarray(value, variable.get_value().dtype))
    state = dict(layers.torch.model.named_parameters())
    own = variables(layers.flax.model)
    for loose in layers.loose:
        value = loose.to_flax(state[loose.source].detach().numpy())
        own[loose.variable].set_value(jax.numpy.asarray(value, own[loose.variable].get_value().dtype))


def _first(layers: Layers) -> Row | None:
    """The first row that differs: forward, then the loss, then backward from the end."""
    backward = ("input gradient", "parameter gradient", "gradient")
    rows = [*layers.rows, *layers.extra]
    ahead = [row for row in rows if row.what and row.what not in (*backward, "float32")]
    behind = [row for row in reversed(rows) if row.what in backward]
    return next(iter(ahead + behind), None)


def _blame_first(layers: Layers) -> None:
    """Name the first output that differs where no layer and no code between explains it."""
    row = next(row for row in [*layers.rows, *layers.extra] if (row.free or 0) > RELATIVE)
    row.what, row.where = "output", f"the output of {row.name}, when both models run freely"


def _runs_equal(layers: Layers) -> bool:
    """Whether nothing differs in the forward pass, so that gradients can be compared."""
    rows = [*layers.rows, *layers.extra]
    return _first(layers) is None and all((row.free or 0) <= RELATIVE for row in rows)


def _notes(layers: Layers) -> list[str]:
    notes = []
    random = sorted({*layers.torch.random, *layers.flax.random})
    if random:
        notes.append(f"switched off, because random numbers never agree: {', '.join(random)}")
    if layers.flax.lifted:
        notes.append(
            f"{layers.flax.lifted} Flax layers with dtype float32 computed in float64 for the comparison"
        )
    quiet = [leaf.path for leaf in layers.unpaired[0] if not leaf.tensors]
    if quiet:
        notes.append(
            f"PyTorch's {_some(quiet)} {'have' if len(quiet) > 1 else 'has'} no weights and no counterpart: "
            "part of the code between the layers that were compared"
        )
    for pair in layers.pairs:
        linked = {name for link in pair.links for name in link.sources}
        alone = [name for name in pair.torch.tensors if name not in linked]
        used = {link.variable for link in pair.links}
        other = ["/".join(map(str, path)) for path in pair.flax.tensors if path not in used]
        if alone or other:
            notes.append(
                f"{pair.torch.path or '(model)'}: "
                + "; ".join(
                    [f"Flax has no {name}" for name in alone] + [f"PyTorch has no {name}" for name in other]
                )
            )
    unused = [
        name
        for name, parameter in layers.torch.model.named_parameters()
        if parameter.requires_grad and layers.record.gradients and name not in layers.record.gradients
    ]
    if unused:
        notes.append(f"parameters without a gradient in PyTorch (unused?): {_some(unused)}")
    if layers.unused:
        notes.append(f"parameters of Flax that no call uses, and that have no pair: {_some(layers.unused)}")
    renamed = [out for out in layers.outputs if kinds.plain(out.torch) != kinds.plain(out.flax)]
    for out in renamed:
        notes.append(f"PyTorch's output{out.torch} was compared with Flax's output{out.flax}, by their order")
    if not layers.has_objective:
        notes.append("gradients of the whole models were not compared: give losses of what both return")
    jitted = [path for path, module in layers.flax.modules().items() if _is_jitted(module)]
    if jitted:
        notes.append(f"opaque because of nnx.jit, so it was taken off for the comparison: {_some(jitted)}")
    leaves = [leaf for pair in layers.pairs for leaf in (pair.torch, pair.flax)]
    leaves += [leaf for side in layers.unpaired for leaf in side]
    opaque = [
        leaf.path
        for leaf in leaves
        if leaf.tensors
        and leaf.kind not in kinds.UNITS
        and not kinds.is_known(leaf.kind)
        and _has_children(leaf.module)
    ]
    if opaque:
        notes.append(f"opaque, compared as one layer (its layers are used without a call): {_some(opaque)}")
    return notes


def _has_children(module: Any) -> bool:
    if isinstance(module, torch.nn.Module):
        return isinstance(module, torch.jit.ScriptModule) or any(True for _ in module.children())
    return any(True for _ in nnx.iter_children(module))


def _is_jitted(module: Any) -> bool:
    return callable(module) and isinstance(type(module).__call__, JITTED)


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _not_compared(layers: Layers) -> list[Row]:
    rows = []
    for leaf in layers.unpaired[0]:
        if leaf.tensors:
            where = "Flax has no counterpart; if it has, say so in pairs"
            rows.append(Row(leaf.path, "", leaf.kind, verdict="not compared", where=where))
    for leaf in layers.unpaired[1]:
        if leaf.tensors:
            where = "PyTorch has no counterpart"
            rows.append(Row("", leaf.path, leaf.kind, verdict="not compared", where=where))
    return rows


def _compare_float32(
    torch_model: Any, flax_model: Any, layers: Layers, loss: Any, backward: bool, copy_weights: bool
) -> None:
    """Fill `Row.float32` and `Row.noise`."""
    inputs, given = layers.inputs, layers.flax_inputs
    backward = backward and layers.has_objective
    run = {"loss": loss and loss[0], "backward": backward, "keep": False}
    side, nudged = TorchSide(torch_model, "float32"), TorchSide(torch_model, "float32")
    nudged.nudge()
    record = side.run(inputs.args, inputs.kwargs, **run)
    noisy = nudged.run(inputs.args, inputs.kwargs, **run)
    floors: dict[tuple[str, int], float] = {}
    size = largest([float(np.linalg.norm(g)) for c in record.calls for g in c.gradients if g is not None])
    for a, b in zip(record.calls, noisy.calls, strict=True):
        moved = [difference(y, x) for x, y in zip(a.outputs, b.outputs, strict=True) if x.dtype.kind == "f"]
        back = [
            difference(y, x, SMALL * size)
            for x, y in zip(a.gradients, b.gradients, strict=True)
            if x is not None and y is not None
        ]
        floors[a.path, a.number] = largest([*moved, *back])
    flax = FlaxSide(flax_model, "float32", torch_model.training)
    flax.units = layers.flax.units
    small = Layers(
        side, flax, inputs, given, record, layers.shapes, layers.pairs, layers.loose, loss, backward
    )
    small.outputs = layers.outputs
    for path, module in layers.flax.modules().items():
        if hasattr(module, "use_running_average"):
            flax.modules()[path].use_running_average = module.use_running_average
    if copy_weights:
        _copy_weights(small)
    found: dict[tuple[str, int], float] = {}

    def counterpart(call: Any) -> tuple[Any, Any]:
        """The pair of a Flax call, and PyTorch's call."""
        pair = small.by_flax.get(call.path)
        return pair, small.calls.get((pair.torch.path, call.number)) if pair else None

    def visit(call: Any, output: Any) -> Any:
        pair, theirs = counterpart(call)
        if pair and theirs:
            found[theirs.path, theirs.number] = small._compare_outputs(pair, theirs, call.outputs)[0]
        return output

    flax.run(given.args, given.kwargs, visit)
    if backward:
        for call in flax.gradients(given.args, given.kwargs, small.objective, layers.shapes.calls).calls:
            pair, theirs = counterpart(call)
            if pair and theirs:
                for x, mine in zip(theirs.gradients, call.gradients, strict=False):
                    if x is not None and mine is not None:
                        layout = kinds.find_layout(x, mine, pair.kind, theirs.module)
                        far = (
                            np.inf if layout is None else difference(mine, x.transpose(layout), SMALL * size)
                        )
                        found[theirs.path, theirs.number] = max(found[theirs.path, theirs.number], far)
    worst = 0.0
    for key, row in layers.row_of.items():
        if key in found:
            worst = max(worst, floors[key])
            row.float32, row.noise = found[key], floors[key]
            if row.float32 > NOISE * max(row.noise, EPSILON32) and not row.what:
                row.what = "float32"
                row.where = (
                    f"{row.name} in float32: {row.float32:.1e} is more than {NOISE} times the noise floor "
                    f"of {max(row.noise, EPSILON32):.1e}, though equal in float64"
                )
                row.cause = _explain_float32(layers, key)


def _explain_float32(layers: Layers, key: tuple[str, int]) -> str:
    module = layers.by_torch[key[0]].flax.module
    if getattr(module, "use_fast_variance", False):
        return (
            "Flax computes the variance as E[x²] - E[x]², which cancels for inputs far from zero; "
            "use_fast_variance=False"
        )
    return "a function that rounds more than it must, or a type narrower than float32"
