"""The likely cause of a difference: mistakes that people make are tried until one gives Flax's numbers.

A cause is named only if it makes the two equal: a setting of the Flax layer with which it gives PyTorch's
result, or an expression of PyTorch that gives Flax's.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from lockstep import kinds, variants
from lockstep.kinds import Link
from lockstep.observe import Call, Local, difference
from lockstep.pairing import Pair

EQUAL = 1e-9  # between what was tried and what was seen
NARROW = {"float32": 1e-6, "float16": 7e-4, "bfloat16": 2e-2}  # how far each rounds


@dataclass
class Case:
    """A difference of a leaf, or of the code before it, with what is needed to try causes."""

    what: str
    pair: Pair
    torch: Call
    flax: Call
    local: Local | None = None  # Flax's leaf on PyTorch's input
    expected: Local | None = None  # PyTorch's leaf alone, with gradients
    rerun: Callable[..., Local] | None = None  # with a changed Flax leaf, or changed keyword arguments
    measure: Callable[[Local], dict[str, float]] | None = None
    between: tuple[np.ndarray, np.ndarray] = (np.zeros(0), np.zeros(0))  # PyTorch's and Flax's

    def fits(self, edit: Callable[[Any], Any] = lambda module: None, **keywords: Any) -> bool:
        """Whether a change of the Flax leaf makes equal what differs."""
        assert self.rerun and self.measure
        try:
            far = self.measure(self.rerun(edit, **keywords))
        except Exception:  # a setting that the layer does not take is not the cause
            return False
        return far.get(self.what, np.inf) < EQUAL and far["output"] < EQUAL


# --- weights -----------------------------------------------------------------------------------------------


def explain_weights(kind: str, link: Link, expected: np.ndarray, actual: np.ndarray, tensors: Mapping) -> str:
    """Why a Flax variable is not what PyTorch's tensors make of it."""
    source = tensors[link.sources[0]]
    name = "/".join(map(str, link.variable))
    if source.ndim > 1 and source.size == actual.size:
        for order in itertools.permutations(range(source.ndim)):
            turned = source.transpose(order).reshape(actual.shape)
            if difference(actual, turned) < EQUAL:
                right = "(out, in) must become (in, out)" if source.ndim == 2 else "OIHW must become HWIO"
                if kind in ("linear", *kinds.CONVOLUTIONS):
                    how = (
                        "was copied without transposing it"
                        if order == tuple(range(source.ndim))
                        else (f"was transposed by {order}")
                    )
                    return f"{link.sources[0]} {how}: {right}"
                return f"{name} is {link.sources[0]} transposed by {order}"
        spatial = tuple(range(expected.ndim - 2))
        if expected.ndim > 2 and difference(actual, np.flip(expected, spatial)) < EQUAL:
            return f"{name} is flipped in space"
    for other, tensor in tensors.items():
        if other not in link.sources and difference(actual, tensor) < EQUAL:
            return f"{name} has PyTorch's {other}"
    if kind == "attention" and "in_proj" in link.sources[0]:
        fused = source if source.ndim > 1 else source[:, None]
        parts = dict(zip(("query", "key", "value"), np.split(fused, 3), strict=True))
        flat = actual.reshape(fused.shape[1], -1).T if source.ndim > 1 else actual.reshape(-1, 1)
        for part, array in parts.items():
            if difference(flat, array) < EQUAL:
                return f"{name} has the projection of the {part}"
        heads = actual.shape[1] if actual.ndim == 3 else actual.shape[0] if actual.ndim == 2 else 1
        for index, part in enumerate(parts):
            split = fused.reshape(heads, 3, -1, fused.shape[1])[:, index].reshape(-1, fused.shape[1])
            if difference(flat, split) < EQUAL:
                return (
                    f"the fused projection was split by head, (heads, 3, size), for the {part}; "
                    "PyTorch's is (3, heads, size)"
                )
    return relate(expected, actual)


# --- leaves ------------------------------------------------------------------------------------------------


def settings(kind: str, theirs: Any) -> Iterator[tuple[str, Any]]:
    """Attributes of a Flax layer and the values that a PyTorch module asks for."""
    get = lambda name, default=None: getattr(theirs, name, default)  # noqa: E731
    if kind in kinds.CONVOLUTIONS:
        padding: Any = get("padding")
        size = len(theirs.kernel_size)
        if kind == "conv transpose":
            reach = [d * (k - 1) for d, k in zip(theirs.dilation, theirs.kernel_size, strict=True)]
            pads = zip(reach, padding, theirs.output_padding, strict=True)
            yield "padding", tuple((r - p, r - p + extra) for r, p, extra in pads)
        elif isinstance(padding, str):
            yield "padding", padding.upper()
        elif theirs.padding_mode in ("circular", "reflect"):
            yield "padding", theirs.padding_mode.upper()
        else:
            yield "padding", tuple((p, p) for p in padding)
        yield "strides", tuple(theirs.stride)
        yield "kernel_dilation", tuple(theirs.dilation)
        yield "feature_group_count", theirs.groups
        yield "input_dilation", (1,) * size
    if kind in kinds.NORMS:
        eps = get("eps")
        yield "epsilon", eps if eps is not None else float(np.finfo(np.float64).eps)
    if kind == "batch norm":
        if get("momentum") is not None:
            yield "momentum", round(1 - theirs.momentum, 12)
        yield "use_running_average", not theirs.training and get("running_mean") is not None
    if kind == "layer norm":
        yield "reduction_axes", tuple(range(-len(theirs.normalized_shape), 0))
    if kind == "group norm":
        yield "num_groups", theirs.num_groups
    if kind == "attention":
        yield "num_heads", theirs.num_heads
    if kind == "dropout":
        yield "deterministic", not theirs.training
    if kind == "rnn cell":
        yield "activation_fn", {"tanh": jnp.tanh, "relu": lambda x: jnp.maximum(x, 0)}[theirs.nonlinearity]


def compare_settings(kind: str, theirs: Any, rate: float | None) -> str:
    """A setting that differs but cannot show while random layers are switched off: the rate of dropout."""
    p = getattr(theirs, "p", None)
    if kind == "dropout" and p is not None and rate is not None and not math.isclose(p, rate):
        kept = math.isclose(p, 1 - rate)
        return f"dropout rate {p:g} in PyTorch, {rate:g} in Flax" + (" (that it keeps?)" if kept else "")
    return ""


def explain_leaf(case: Case) -> str:
    """The cause of a difference of one leaf on the same input; empty if none of those tried is it."""
    found = _explain_by_settings(case) or _explain_by_variants(case)
    if found or case.what not in ("output", "statistics"):
        return found or _explain_gradients(case)
    pairs = zip(*_outputs(case), strict=False) if case.what == "output" else ()
    for expected, actual in pairs:
        if difference(actual, expected) > EQUAL:
            return _unary(case, expected, actual) or relate(expected, actual)
    return ""


def _explain_by_settings(case: Case) -> str:
    module, kind = case.flax.module, case.pair.kind
    edits: list[tuple[str, Callable[[Any], Any]]] = []
    for name, value in settings(kind, case.torch.module):
        given = case.flax.arguments[1].get(name)
        if given is not None and given != value and case.fits(**{name: value}):
            return f"Flax calls it with {name}={given}; equal with {name}={value}"
        current = getattr(module, name, None)
        if hasattr(module, name) and not _same(current, value):
            words = f"equal with {_show(name, value)}; Flax's {_explain_current(name, current, case)}"

            edits.append((words, partial(_set, name, value)))
    dtype = getattr(module, "dtype", None)
    if dtype is not None and np.dtype(dtype) != np.float64:
        edits.append(
            (
                f"Flax computes in {np.dtype(dtype)}; equal with dtype=None",
                partial(_set, "dtype", None),
            )
        )
    if getattr(module, "use_fast_variance", False):
        words = "equal with use_fast_variance=False; E[x²] - E[x]² cancels"
        edits.append((words, partial(_set, "use_fast_variance", False)))
    for words, edit in edits:
        if case.fits(edit):
            return words
    for (words, edit), (more, other) in itertools.combinations(edits, 2):
        if case.fits(lambda m, e=edit, o=other: (e(m), o(m), None)[2]):
            return f"{words}; and {more}"
    return ""


def _set(name: str, value: Any, module: Any) -> None:
    setattr(module, name, value)


def _same(current: Any, value: Any) -> bool:
    if isinstance(value, tuple) and isinstance(current, int):
        return all(v in (current, (current, current)) for v in value)
    if isinstance(value, tuple) and isinstance(current, list | tuple):
        return tuple(tuple(x) if isinstance(x, list | tuple) else x for x in current) == value
    return current == value


def _show(name: str, value: Any) -> str:
    return f"{name}={getattr(value, '__name__', value)}" if name != "padding" else f"padding {value}"


def _explain_current(name: str, current: Any, case: Case) -> str:
    if name == "padding" and current == "SAME" and case.pair.kind == "conv":
        theirs = case.torch.module
        sizes = case.torch.inputs[0].shape[2:]
        pads = []
        for n, k, s, d in zip(sizes, theirs.kernel_size, theirs.stride, theirs.dilation, strict=True):
            total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            pads.append((total // 2, total - total // 2))
        shown = pads[0] if len(set(pads)) == 1 else tuple(pads)
        return f"SAME pads {shown} at stride {theirs.stride[0]}"
    note = ""
    if (
        name == "momentum"
        and isinstance(current, float)
        and math.isclose(current, case.torch.module.momentum)
    ):
        note = " (PyTorch's m weighs the new value, Flax's the old one)"
    if name == "epsilon" and case.pair.kind == "layer norm" and current == 1e-6:
        note = " (its default; PyTorch's is 1e-5)"
    return f"{name} is {current!r}{note}"


def _outputs(case: Case) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """PyTorch's and Flax's outputs of a leaf on the same input, in PyTorch's layout."""
    assert case.local
    actual = []
    for theirs, mine in zip(case.torch.outputs, case.local.outputs, strict=False):
        layout = kinds.find_layout(theirs, mine, case.pair.kind, case.torch.module)
        layout = layout or kinds.layouts(mine.ndim, case.pair.kind)[0]
        actual.append(mine.transpose(np.argsort(layout)))
    return case.torch.outputs, actual


def _explain_by_variants(case: Case) -> str:
    """An expression of PyTorch, other than its own, that gives what Flax's leaf gives."""
    tensors, inputs = dict(case.pair.torch.tensors) | case.torch.statistics, case.torch.inputs
    if case.what == "output":
        actual = _outputs(case)[1]
        tried = variants.outputs(case.pair.kind, case.torch.module, inputs, tensors)
    elif case.what == "statistics":
        assert case.local
        stats = [link for link in case.pair.links if link.variable in case.local.statistics]
        actual = [case.local.statistics[link.variable] for link in stats]
        names = [link.sources[0] for link in stats]
        tried = variants.statistics(case.torch.module, inputs[0], tensors, names)
    else:
        return ""
    for words, arrays in tried:
        if arrays and all(
            a.shape == b.shape and difference(a, b) < EQUAL for a, b in zip(actual, arrays, strict=False)
        ):
            return words
    return ""


def _unary(case: Case, expected: np.ndarray, actual: np.ndarray) -> str:
    if not case.torch.inputs:
        return ""
    return explain_between(expected, actual, {"x": case.torch.inputs[0]})


def _explain_gradients(case: Case) -> str:
    assert case.local and case.expected
    if case.what == "parameter gradient":
        for link in case.pair.links:
            if link.variable in case.local.parameters:
                mine = case.local.parameters[link.variable]
                theirs = [case.expected.parameters.get(n) for n in link.sources]
                if any(g is None for g in theirs):
                    return f"PyTorch does not train {link.sources[0]}, Flax does" if np.any(mine) else ""
                expected = link.gradient(*theirs)
                if difference(mine, expected) > EQUAL:
                    rows = [i for i in range(len(mine)) if difference(mine[i], expected[i]) > EQUAL]
                    if case.pair.kind == "embedding" and rows == [
                        getattr(case.torch.module, "padding_idx", None)
                    ]:
                        return (
                            f"PyTorch's padding_idx={rows[0]} has no gradient, Flax's row {rows[0]} has one"
                        )
                    return _relate_gradient(expected, mine)
    for expected, actual in zip(case.expected.inputs, case.local.inputs, strict=False):
        if expected is not None and actual is not None:
            layout = kinds.find_layout(expected, actual, case.pair.kind, case.torch.module)
            if layout and difference(actual, expected.transpose(layout)) > EQUAL:
                return _relate_gradient(expected.transpose(layout), actual)
    return ""


def _relate_gradient(expected: np.ndarray, actual: np.ndarray) -> str:
    if not actual.any():
        return "Flax's gradient is zero: stop_gradient, or a function without a derivative"
    if not expected.any():
        return "PyTorch's gradient is zero: detach, or requires_grad is off"
    if difference(actual, expected) < NARROW["float32"]:
        return (
            "the size of float32's rounding: one computes in float32, as PyTorch's hardsigmoid does backwards"
        )
    mine, theirs = np.abs(actual).sum(), np.abs(expected).sum()
    both = (actual != 0) & (expected != 0)
    if both.any() and difference(actual[both], expected[both]) < EQUAL:
        more = "Flax" if (actual != 0).sum() > (expected != 0).sum() else "PyTorch"
        return (
            f"equal where both have a gradient, but {more} has one in more places: ties, or a clipped range"
        )
    if math.isclose(mine, theirs, rel_tol=0.5) and math.isclose(actual.sum(), expected.sum(), rel_tol=1e-6):
        return "the same sum in other places: a tie (of a maximum) is resolved in another way"
    return relate(expected, actual)


def explain_gradient(theirs: Call, mine: Call) -> str:
    """Why the gradient that comes back to a leaf's output differs."""
    expected, actual = theirs.gradients[0], mine.gradients[0]
    if actual is None:
        return ""
    expected = np.zeros(theirs.outputs[0].shape) if expected is None else expected
    layout = kinds.find_layout(expected, actual, theirs.kind, theirs.module)
    return _relate_gradient(expected.transpose(layout), actual) if layout else ""


def explain_total(name: str, shared: list[str], mine: np.ndarray, expected: np.ndarray) -> str:
    """Why the whole gradient of a parameter differs though every leaf's is equal."""
    if shared:
        return f"PyTorch shares {name} with {', '.join(shared)}; Flax has separate parameters"
    return (
        _relate_gradient(expected, mine)
        or "used in Flax where PyTorch does not use it, or the other way round"
    )


def explain_loss(expected: float, value: Callable[[dict], Any], outputs: Mapping[str, Any]) -> str:
    """Why Flax's loss of PyTorch's output is not PyTorch's."""
    actual = float(value(dict(outputs)))
    first = next(iter(outputs.values()))
    for words, change in {
        "probabilities (softmax), PyTorch's logits": lambda x: jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True),
        "log-probabilities (log_softmax), PyTorch's logits": lambda x: (
            x - jnp.log(jnp.exp(x).sum(-1, keepdims=True))
        ),
        "probabilities (sigmoid), PyTorch's logits": lambda x: 1 / (1 + jnp.exp(-x)),
    }.items():
        given = float(value({k: change(x) for k, x in outputs.items()}))
        if math.isclose(given, expected, rel_tol=EQUAL):
            return f"Flax's loss wants {words}"
    ratio = actual / expected if expected else np.inf
    sizes = {f"the {n} numbers of axis {i}": n for i, n in enumerate(first.shape)}
    sizes["all numbers of the output"] = first.size
    sizes[f"the {first.size // first.shape[-1]} examples"] = first.size // first.shape[-1]
    for words, n in sizes.items():
        if n > 1 and math.isclose(ratio, n, rel_tol=EQUAL):
            return f"Flax sums over {words} where PyTorch takes the mean (a factor of {n})"
        if n > 1 and math.isclose(ratio, 1 / n, rel_tol=EQUAL):
            return f"Flax takes the mean over {words} where PyTorch sums (a factor of 1/{n})"
    for words, factor in {
        "log base 2": 1 / math.log(2),
        "half": 0.5,
        "twice": 2.0,
        "the opposite": -1.0,
    }.items():
        if math.isclose(ratio, factor, rel_tol=EQUAL):
            return f"Flax's loss is {words}: {factor:.4g} times PyTorch's"
    log = math.isclose(actual, math.log(expected), rel_tol=EQUAL) if expected > 0 else False
    return "Flax's is the logarithm" if log else ""


# --- the code between leaves -------------------------------------------------------------------------------


def relate(expected: np.ndarray, actual: np.ndarray) -> str:
    """What Flax's array is of PyTorch's, in PyTorch's layout: a multiple, another order, another type."""
    if expected.shape != actual.shape:
        return ""
    if not np.isfinite(actual).all() and np.isfinite(expected).all():
        return "Flax's has numbers that are not finite"
    if not actual.any():
        return "Flax's is zero"
    where = np.abs(expected) > 1e-12 * np.abs(expected).max()
    ratios = actual[where] / expected[where]
    if ratios.size > 1 and np.ptp(ratios) < EQUAL * abs(ratios[0]):
        root = ratios[0] ** 2
        named = (
            f" (the square root of {root:.6g})" if ratios[0] > 0 and abs(root - round(root)) < 1e-6 else ""
        )
        named = (
            f" (1 / the square root of {1 / root:.6g})"
            if 0 < root < 0.6 and abs(1 / root - round(1 / root)) < 1e-6
            else named
        )
        return f"Flax's is {ratios[0]:.6g} times PyTorch's{named}"
    if np.ptp(actual - expected) < EQUAL * np.abs(expected).max():
        return f"Flax's is PyTorch's plus {float((actual - expected).flat[0]):.6g}"
    dropped = actual == 0
    if dropped.any() and not dropped.all():
        kept = where & ~dropped
        ratios = actual[kept] / expected[kept]
        if np.ptp(ratios) < EQUAL * abs(ratios[0]) and ratios[0] > 1:
            return f"dropout is on in Flax, with rate {1 - 1 / ratios[0]:.3g}"
    for axis in range(expected.ndim):
        if difference(actual, np.flip(expected, axis)) < EQUAL:
            return f"Flax's is reversed along axis {axis}"
        for shift in (1, -1):
            if difference(actual, np.roll(expected, shift, axis)) < EQUAL:
                return f"Flax's is shifted by {shift} along axis {axis}"
    if difference(np.sort(actual.ravel()), np.sort(expected.ravel())) < EQUAL:
        return "the same numbers in another order: a flatten, reshape or transpose"
    for name, rounding in NARROW.items():
        if difference(actual, expected) < rounding:
            also = " (jax.nn.dot_product_attention always does)" if name == "float32" else ""
            return f"the size of {name}'s rounding: Flax computes something in {name}{also}"
    for axis in range(expected.ndim - 1):
        a = actual - expected
        if expected.shape[axis] > 1 and difference(a, np.broadcast_to(a.take([0], axis), a.shape)) < EQUAL:
            return f"Flax's differs by what is constant along axis {axis}: an added or missing bias"
    return ""


def explain_between(expected: np.ndarray, actual: np.ndarray, sources: Mapping[str, np.ndarray]) -> str:
    """Which expressions of earlier tensors are PyTorch's and Flax's."""
    wanted = {"PyTorch": expected, "Flax": actual}
    found: dict[str, str] = {}
    probes = {who: _probe(array) for who, array in wanted.items()}
    for words, array in variants.expressions(list(sources.items()), {expected.shape, actual.shape}):
        for who, target in wanted.items():
            if who in found or array.shape != target.shape or array.dtype.kind != "f":
                continue
            if (
                np.allclose(_probe(array), probes[who], rtol=1e-7, atol=1e-12)
                and difference(array, target) < EQUAL
            ):
                found[who] = words
        if len(found) == 2:
            break
    if len(found) == 2:
        return f"PyTorch computes {found['PyTorch']}, Flax {found['Flax']}"
    related = relate(expected, actual)
    if "another order" in related:
        related = _flattened(expected, actual, sources) or related
    if "Flax" in found:
        return f"Flax computes {found['Flax']}, PyTorch something else" + (f"; {related}" if related else "")
    if "PyTorch" in found:
        if not related:
            related = _after(expected, actual)
        return f"PyTorch computes {found['PyTorch']}" + (
            f"; {related}" if related else ", Flax something else"
        )
    return related or _after(expected, actual)


def _flattened(expected: np.ndarray, actual: np.ndarray, sources: Mapping[str, np.ndarray]) -> str:
    """Which way each side flattens an image of the shape of one of the sources."""
    for array in sources.values():
        if array.ndim > 2 and array.size == expected.size:
            last = np.moveaxis(expected.reshape(array.shape), 1, -1)
            if difference(actual, last.reshape(actual.shape)) < EQUAL:
                return f"PyTorch's is flattened as NCHW, Flax's is flattened as NHWC, of {array.shape}"
    return ""


def _after(expected: np.ndarray, actual: np.ndarray) -> str:
    """Whether one side has a function more."""
    for words, function in variants.UNARY.items():
        if expected.shape == actual.shape and words != "{}":
            if difference(variants.apply(function, expected), actual) < EQUAL:
                return f"Flax computes {words.format('it')} more than PyTorch"
            if difference(expected, variants.apply(function, actual)) < EQUAL:
                return f"PyTorch computes {words.format('it')} more than Flax"
    return ""


def _probe(array: np.ndarray) -> np.ndarray:
    """A few numbers of an array, to reject most candidates early."""
    flat = array.reshape(-1)
    return flat[:: max(1, flat.size // 64)][:64]
