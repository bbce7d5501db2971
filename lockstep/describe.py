"""What a value is of another: a table of computations that frameworks have and people write, in NumPy."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from scipy import special

from lockstep.values import EXACT, distance

Array = np.ndarray
Made = Iterator[tuple[str, Array]]
LARGE, FAR = 2**18, 64  # numbers of a value that is described; places along an axis that is resized

FUNCTIONS: dict[str, Callable[[Array], Array]] = {  # the simplest first, as numbers above zero need no more
    "abs": np.abs,
    "exp": np.exp,
    "square": np.square,
    "the square root": lambda x: np.sqrt(np.abs(x)),
    "relu": lambda x: np.maximum(x, 0),
    "GELU with erf (approximate=False)": lambda x: 0.5 * x * (1 + special.erf(x / math.sqrt(2))),
    "GELU with tanh (approximate=True)": lambda x: (
        0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "quick GELU": lambda x: x * special.expit(1.702 * x),
    "SiLU": lambda x: x * special.expit(x),
    "sigmoid": special.expit,
    "tanh": np.tanh,
    "softplus": lambda x: np.logaddexp(x, 0),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hard_swish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "relu6": lambda x: np.clip(x, 0, 6),
    "squared relu": lambda x: np.maximum(x, 0) ** 2,
    "ELU": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "SELU": lambda x: (
        1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0)))
    ),
    "CELU of alpha 2": lambda x: np.where(x > 0, x, 2 * np.expm1(np.minimum(x, 0) / 2)),
    "mish": lambda x: x * np.tanh(np.logaddexp(x, 0)),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "log_sigmoid": lambda x: -np.logaddexp(-x, 0),
    **{f"leaky_relu of slope {a:g}": lambda x, a=a: np.where(x > 0, x, a * x) for a in (0.01, 0.1, 0.2, 0.3)},
}
PARTS = ("abs", "exp", "square", "the square root")  # of other formulas more often than a mistake
REDUCTIONS: dict[str, Callable[..., Any]] = {
    "the mean": np.mean,
    "the sum": np.sum,
    "the maximum": np.max,
    "the minimum": np.min,
    "the variance by n": np.var,
    "the variance by n - 1": lambda x, axis: np.var(x, axis=axis, ddof=1),
    "the product": np.prod,
    "the mean of squares, without subtracting the mean,": lambda x, axis: np.mean(x**2, axis=axis),
}


def describe(x: Array, y: Array, order: tuple[int, ...], numbers: Iterable[float] = ()) -> str:
    """How a value follows from another; empty if the table does not know.

    Args:
        x: what it is computed of.
        y: the value, its axes in the order of ``x``'s.
        order: what the axes of ``x`` are called.
        numbers: that may be epsilons.
    """
    if x.dtype.kind != "f" or y.dtype.kind != "f" or not 0 < x.ndim <= 5 or max(x.size, y.size) > LARGE:
        return ""
    if not x.size or not y.size or np.isnan(x).any():
        return ""
    x = np.maximum(x, -1e30)  # masked
    with np.errstate(all="ignore"):
        for words, made in _made(x, y, order, numbers):
            if made.size == y.size and distance(made.ravel(), y.ravel()) <= EXACT:
                return words
    return ""


def _made(x: Array, y: Array, order: tuple[int, ...], numbers: Iterable[float]) -> Made:
    axes = [a for a in range(x.ndim) if x.shape[a] > 1]
    some = [s for n in range(1, len(axes) + 1) for s in itertools.combinations(axes, n)]
    if y.size < x.size:
        yield from _reductions(x, y, some, order)
    elif y.size == x.size:
        if name := function_of(x, lambda made: distance(made.ravel(), y.ravel()) <= EXACT):
            yield name, y
        yield from _normalisations(x, some, order, numbers)
        yield from _rotations(x, y, order)
        if x.shape == y.shape and x.ndim > 2:  # channels last or first
            yield from _windows(x, y, list(range(1, x.ndim - 1)))
            yield from _windows(x, y, list(range(2, x.ndim)))
    if y.ndim == x.ndim and y.shape != x.shape:
        changed = [a for a in axes if x.shape[a] != y.shape[a]]
        yield from _paddings(x, y, order)
        if changed and all(y.shape[a] > 1 for a in changed):
            yield from _windows(x, y, changed)
            yield from _resizes(x, y, changed)


def function_of(x: Array, fits: Callable[[Array], bool]) -> str:
    """The simplest function of a value whose result fits, and which changes it; empty if there is none."""
    made = ((name, function(x)) for name, function in FUNCTIONS.items())
    return next((name for name, y in made if distance(x, y) > EXACT and fits(y)), "")


def _named(axes: Iterable[int], order: tuple[int, ...]) -> str:
    return f"over axes {tuple(sorted(order[a] for a in axes))}"


def _reductions(x: Array, y: Array, some: list[tuple[int, ...]], order: tuple[int, ...]) -> Made:
    for axes in some:
        if y.size * math.prod(x.shape[a] for a in axes) == x.size:
            for name, reduce in REDUCTIONS.items():
                yield f"{name} {_named(axes, order)}", reduce(x, axis=axes)
            for word, index in (("the first", 0), ("the last", -1)) if len(axes) == 1 else ():
                yield f"{word} along axis {order[axes[0]]}", x.take(index, axes[0])
    for groups, axis, parts, rest in _grouped(x):
        if y.size == x.shape[0] * groups:
            yield f"the mean over {groups} groups of axis {order[axis]}", parts.mean(rest)
            yield f"the variance over {groups} groups of axis {order[axis]}", parts.var(rest)


def _grouped(x: Array) -> Iterator[tuple[int, int, Array, tuple[int, ...]]]:
    """An axis of channels in groups: how many, the axis, the array, and the axes of one group."""
    for axis in range(1, x.ndim):
        for groups in (g for g in range(1, x.shape[axis] + 1) if x.shape[axis] % g == 0):
            parts = x.reshape(*x.shape[:axis], groups, -1, *x.shape[axis + 1 :])
            yield groups, axis, parts, tuple(a for a in range(1, parts.ndim) if a != axis)


def _normalisations(
    x: Array, some: list[tuple[int, ...]], order: tuple[int, ...], numbers: Iterable[float]
) -> Made:
    epsilons = list(dict.fromkeys([*(n for n in numbers if 0 < n < 0.1), 1e-5, 1e-6, 1e-3, 1e-12, 0.0]))[:6]
    for axes in some:
        over = _named(axes, order)
        yield f"softmax {over}", special.softmax(x, axes)
        yield f"log_softmax {over}", special.log_softmax(x, axes)
        if len(axes) == 1:
            yield f"the cumulated sum {over}", np.cumsum(x, axes[0])
        centred = x - x.mean(axes, keepdims=True)
        for words, part in (
            (f"a normalisation {over}", centred),
            (f"an RMS normalisation {over}, without subtracting the mean", x),
        ):
            for epsilon in epsilons:
                yield words, part / np.sqrt((part**2).mean(axes, keepdims=True) + epsilon)
        yield f"a division by the norm {over}", x / np.sqrt((x**2).sum(axes, keepdims=True))
    for groups, axis, parts, rest in _grouped(x):
        centred = parts - parts.mean(rest, keepdims=True)
        for epsilon in epsilons:
            root = np.sqrt((centred**2).mean(rest, keepdims=True) + epsilon)
            yield f"a normalisation in {groups} groups of axis {order[axis]}", centred / root


def _rotations(x: Array, y: Array, order: tuple[int, ...]) -> Made:
    """Pairs of numbers whose length stays, as rotary positions have them: of halves or interleaved."""
    for axis in (a for a in range(x.ndim) if x.shape == y.shape and x.shape[a] % 2 == 0):
        a, b = (np.moveaxis(v, axis, -1) for v in (x, y))
        moved = np.nonzero((np.abs(a - b) > EXACT).reshape(-1, a.shape[-1]).any(0))[0]
        n = int(moved[-1]) + 1 if moved.size else 0
        if n < 4 or n % 2:
            continue
        for word, pair in (
            ("halves", lambda v: (v[..., : n // 2], v[..., n // 2 : n])),  # noqa: B023
            ("interleaved pairs", lambda v: (v[..., 0:n:2], v[..., 1:n:2])),  # noqa: B023
        ):
            (p, q), (r, s) = pair(a), pair(b)
            signs = distance(np.abs(a[..., :n]), np.abs(b[..., :n])) <= EXACT  # only those change
            if distance(p * p + q * q, r * r + s * s) <= EXACT and not signs:
                part = "" if n == x.shape[axis] else f" of the first {n}"
                yield f"a rotation of {word}{part} along axis {order[axis]}", y


def _paddings(x: Array, y: Array, order: tuple[int, ...]) -> Made:
    more = [b - a for a, b in zip(x.shape, y.shape, strict=True)]
    if min(more) < 0 or math.prod(n + 1 for n in more) > 200:
        return
    for low in itertools.product(*(range(n + 1) for n in more)):
        inside = tuple(slice(a, a + n) for a, n in zip(low, x.shape, strict=True))
        if not np.array_equal(y[inside], x):
            continue
        widths = [(a, n - a) for a, n in zip(low, more, strict=True)]
        for word, mode in (
            ("zeros", "constant"), ("reflection", "reflect"), ("the edge repeated", "edge"),
            ("the other side (circular)", "wrap"), ("reflection, the edge too", "symmetric"),
        ):  # fmt: skip
            shown = tuple(pair for _, pair in sorted(zip(order, widths, strict=True)) if any(pair))
            try:
                yield f"padding {shown} with {word}", np.pad(x, widths, mode)  # type: ignore[arg-type]
            except ValueError:  # an array too small to be reflected
                continue


def _windows(x: Array, y: Array, axes: list[int]) -> Made:
    """Poolings, with as many padded places in front as behind, or one more behind."""
    sizes = {x.shape[a] for a in axes}
    for stride, width in itertools.product((2, 1, 3, 4), (2, 3, 4, 5)):
        for pad in range(width // 2 + 1):
            after = [(y.shape[a] - 1) * stride + width - x.shape[a] - pad for a in axes]
            if not all(0 <= n < width for n in after) or (stride > 1 and max(sizes) < stride):
                continue
            pads = [(0, 0)] * x.ndim
            for a, n in zip(axes, after, strict=True):
                pads[a] = (pad, n)

            def windows(v: Array, fill: float) -> Array:
                v = np.pad(v, pads, constant_values=fill)  # noqa: B023
                v = np.lib.stride_tricks.sliding_window_view(v, [width] * len(axes), tuple(axes))  # noqa: B023
                steps = [slice(None, None, stride if a in axes else 1) for a in range(x.ndim)]  # noqa: B023
                return v[tuple(steps)]

            inner = tuple(range(-len(axes), 0))
            words = f"windows of {width}, strides {stride}, padding {tuple(pads[a] for a in axes)}"
            total, places = windows(x, 0.0).sum(inner), windows(np.ones_like(x), 0.0).sum(inner)
            yield f"the maximum of {words}", windows(x, -np.inf).max(inner)
            counted = " (count_include_pad)" if pad or any(after) else ""
            yield f"the average of {words}, padded places counted{counted}", total / width ** len(axes)
            yield f"the average of {words}, padded places not counted{counted}", total / places


# --- resizing ---


def _linear(x: Array) -> Array:
    return np.maximum(0, 1 - np.abs(x))


def _cubic(a: float) -> Callable[[Array], Array]:
    """The cubic kernel with a constant: -0.75 in PyTorch, -0.5 in JAX and PIL."""

    def kernel(x: Array) -> Array:
        x = np.abs(x)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        return np.where(x <= 1, near, np.where(x < 2, far, 0))

    return kernel


KERNELS = {
    "linear": _linear,
    "cubic with the constant -0.75": _cubic(-0.75),
    "cubic with the constant -0.5": _cubic(-0.5),
}


def _matrices(n: int, m: int) -> Made:
    """Matrices (m, n) that resize n numbers to m."""
    places = {
        "align_corners=False": (np.arange(m) + 0.5) * n / m - 0.5,
        "align_corners=True": np.arange(m) * ((n - 1) / max(m - 1, 1)),
    }
    for (word, at), (name, kernel) in itertools.product(places.items(), KERNELS.items()):
        for smooth in (False, True) if n > m else (False,):
            wide = np.arange(-8 * n, 9 * n)
            weights = kernel((at[:, None] - wide) / (n / m if smooth else 1.0))
            for edge in ("repeated", "left out"):
                found = np.zeros((m, n))
                inside = np.clip(wide, 0, n - 1)
                np.add.at(found.T, inside, (weights if edge == "repeated" else weights * (wide == inside)).T)
                yield (
                    f"{name}, {word}{', antialias' if smooth else ''}, edges {edge}",
                    found / found.sum(1, keepdims=True),
                )
    floor = np.minimum((np.arange(m) * n / m).astype(int), n - 1)
    middle = np.minimum(((np.arange(m) + 0.5) * n / m).astype(int), n - 1)
    yield "nearest", np.eye(n)[floor]
    yield "nearest to the middle (nearest-exact)", np.eye(n)[middle]


def _resizes(x: Array, y: Array, axes: list[int]) -> Made:
    if len(axes) > 3 or any(x.shape[a] > FAR or y.shape[a] > 2 * FAR for a in axes):
        return
    tables = [dict(_matrices(x.shape[a], y.shape[a])) for a in axes]
    for name in (n for n in tables[0] if all(n in table for table in tables)):
        made = x
        for a, table in zip(axes, tables, strict=True):
            made = np.moveaxis(np.tensordot(table[name], made, (1, a)), 0, a)
        yield f"a resize ({name})", made


# --- tables that are looked up, and losses ---


def describe_indices(y: Array, ids: list[Array]) -> str:
    """What indices into a table are: positions, relative positions in buckets; empty if not known.

    Args:
        y: the indices.
        ids: words that the model is given, which may be padding.
    """
    y = np.squeeze(y)
    for x in (np.squeeze(x) for x in ids):
        for pad in range(4) if x.shape == y.shape else ():
            keep = (x != pad).astype(int)
            if not keep.all() and np.array_equal(np.cumsum(keep, -1) * keep + pad, y):
                return f"positions of what is no padding, counted after padding's own {pad} (cumsum)"
    if y.ndim == 0 or y.size < 3:
        return ""
    steps = np.diff(y, axis=-1)
    if (steps == 1).all() and (y[..., 0] == y.flat[0]).all():
        return f"positions from {y.flat[0]}"
    if y.ndim != 2:
        return ""
    rows, columns = (np.arange(n) for n in y.shape)
    relative = columns[None] - rows[:, None] - (y.shape[1] - y.shape[0])
    count = int(y.max()) + 1
    for sign, word in ((1, ""), (-1, ", the other way round")):
        for clip in range(1, max(y.shape)):
            if np.array_equal(np.clip(sign * relative, -clip, clip) + clip, y):
                return f"relative positions up to {clip}{word}"
        for both, buckets, far in itertools.product(
            (True, False), range(count, count + 33), (16, 20, 32, 64, 128, 256)
        ):
            if buckets >= 4 and np.array_equal(_buckets(sign * relative, both, buckets, far), y):
                return f"relative positions in buckets, bidirectional={both}{word}"
    return ""


def _buckets(relative: Array, bidirectional: bool, buckets: int, far: int) -> Array:
    """T5's buckets of relative positions: exact ones first, then as the logarithm."""
    first: Array | int = 0
    if bidirectional:
        buckets //= 2
        first, relative = (relative > 0) * buckets, np.abs(relative)
    else:
        relative = -np.minimum(relative, 0)
    exact = buckets // 2
    if not 0 < exact < far:
        return np.full(relative.shape, -1)
    large = np.log(np.maximum(relative, 1) / exact) / math.log(far / exact) * (buckets - exact)
    return first + np.where(relative < exact, relative, np.minimum(exact + large.astype(int), buckets - 1))


SCALES: dict[str, Callable[[Array, int], Array]] = {  # of outputs to logarithms of probabilities
    "": special.log_softmax,
    " after another softmax, of probabilities": lambda x, axis: special.log_softmax(
        special.softmax(x, axis), axis
    ),
    " without softmax, as if the outputs were probabilities": lambda x, _: np.log(x),
}


def describe_loss(value: float, x: Array, labels: Array, numbers: Iterable[float]) -> str:
    """What a loss is of logits (the classes along any axis) or of predictions; empty if not known."""
    if labels.dtype.kind == "f":
        if labels.shape != x.shape:
            return ""
        far = np.abs(x - labels)
        errors = {
            "squared errors": far**2, "errors": far, "halves of squared errors": far**2 / 2,
            "Huber errors": np.where(far < 1, far**2 / 2, far - 0.5),
        }  # fmt: skip
        terms = [(name, error, np.ones(error.shape, bool)) for name, error in errors.items()]
        return _averaged(value, terms, x.shape[0])
    terms = []
    axes = [a for a in range(x.ndim) if x.shape[:a] + x.shape[a + 1 :] == labels.shape]
    for axis, (again, scale) in itertools.product(axes, SCALES.items()):
        with np.errstate(all="ignore"):  # the logarithm of what is no probability
            logs = np.moveaxis(scale(x, axis), axis, -1)
        inside = (labels >= 0) & (labels < logs.shape[-1])
        picked = -np.take_along_axis(logs, np.where(inside, labels, 0)[..., None], -1)[..., 0]
        for smooth in dict.fromkeys([0.0, *(n for n in numbers if 0 < n < 0.5), 0.1]):
            words = "cross entropy" + (f" with label smoothing {smooth:g}" if smooth else "") + again
            error = (1 - smooth) * picked - smooth * logs.mean(-1)
            ignored = [n for n in np.unique(labels) if n <= 3]
            terms.append((words, error * inside, inside))
            terms += [(f"{words}, ignoring {n}", error * (labels != n), labels != n) for n in ignored]
    return _averaged(value, terms, x.shape[0])


def _averaged(value: float, terms: list[tuple[str, Array, Array]], first: int) -> str:
    for words, error, kept in terms:
        total = error.sum()
        for name, n in (
            (f"the mean over {int(kept.sum())}", kept.sum()),
            (f"the mean over all {kept.size}", kept.size),
            ("the sum", 1),
            (f"the sum divided by the {first} examples", first),
        ):
            if n and (abs(total / n - value) <= EXACT * abs(value) or (np.isnan(total) and np.isnan(value))):
                return f"{name} of {words}"
    return ""
