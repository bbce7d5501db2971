"""JAX's common primitives in NumPy: as exact in float64, and without compiling each shape."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special

Array = np.ndarray
DTYPES = ("new_dtype", "dtype", "preferred_element_type", "out_dtype")  # settings that name a type


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel whose primitive has no settings that matter."""
    return lambda *arrays, **settings: function(*arrays)


def _broadcast(x: Array, *, shape: tuple, broadcast_dimensions: tuple, **_: Any) -> Array:
    sizes = [1] * len(shape)
    for axis, target in enumerate(broadcast_dimensions):
        sizes[target] = x.shape[axis]
    return np.broadcast_to(np.reshape(x, sizes), shape)


def _slice(x: Array, *, start_indices: tuple, limit_indices: tuple, strides: tuple | None) -> Array:
    steps = strides or (1,) * x.ndim
    return x[tuple(slice(a, b, c) for a, b, c in zip(start_indices, limit_indices, steps, strict=True))]


def _dynamic_slice(x: Array, *starts: Array, slice_sizes: tuple) -> Array:
    first = [max(0, min(int(a), n - size)) for a, size, n in zip(starts, slice_sizes, x.shape, strict=True)]
    return x[tuple(slice(a, a + size) for a, size in zip(first, slice_sizes, strict=True))]


def _pad(x: Array, fill: Array, *, padding_config: tuple) -> Array | None:
    if any(low < 0 or high < 0 or between for low, high, between in padding_config):
        return None
    return np.pad(x, [pair[:2] for pair in padding_config], constant_values=fill)


def _dot(a: Array, b: Array, *, dimension_numbers: tuple, **_: Any) -> Array | None:
    """A product of matrices: batch axes, then what is free in each operand."""
    (ca, cb), (ba, bb) = dimension_numbers
    if a.dtype.kind not in "fc":
        return None
    fa = [i for i in range(a.ndim) if i not in (*ca, *ba)]
    fb = [i for i in range(b.ndim) if i not in (*cb, *bb)]
    batch, rows, columns = [a.shape[i] for i in ba], [a.shape[i] for i in fa], [b.shape[i] for i in fb]
    inner = math.prod(a.shape[i] for i in ca)
    x = a.transpose(*ba, *fa, *ca).reshape(math.prod(batch), -1 if a.size else 0, inner)
    y = b.transpose(*bb, *cb, *fb).reshape(math.prod(batch), inner, -1 if b.size else 0)
    return np.matmul(x, y).reshape((*batch, *rows, *columns))


def _divide(a: Array, b: Array, **_: Any) -> Array | None:
    return np.divide(a, b) if a.dtype.kind in "fc" else None  # integers are rounded towards zero


def _select(which: Array, *cases: Array, **_: Any) -> Array | None:
    return np.where(which, cases[1], cases[0]) if which.dtype == bool and len(cases) == 2 else None


def _iota(*, dtype: Any, shape: tuple, dimension: int, **_: Any) -> Array:
    sizes = [-1 if axis == dimension else 1 for axis in range(len(shape))]
    return np.broadcast_to(np.arange(shape[dimension], dtype=dtype).reshape(sizes), shape)


def _power(x: Array, *, y: int) -> Array:
    return np.power(x, y) if y >= 0 else 1.0 / np.power(x, -y)


def _cumulate(function: Callable[..., Array]) -> Callable[..., Array]:
    def run(x: Array, *, axis: int, reverse: bool) -> Array:
        return np.flip(function(np.flip(x, axis), axis), axis) if reverse else function(x, axis)

    return run


def _reduce(function: Callable[..., Array]) -> Callable[..., Array]:
    return lambda x, *, axes, **_: function(x, axis=axes)


MOVES: dict[str, Callable[..., Any]] = {  # only move or repeat numbers
    "reshape": lambda x, *, new_sizes, **_: np.reshape(x, new_sizes),
    "transpose": lambda x, *, permutation: np.transpose(x, permutation),
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "squeeze": lambda x, *, dimensions: np.squeeze(x, dimensions),
    "expand_dims": lambda x, *, dimensions: np.expand_dims(x, dimensions),
    "concatenate": lambda *xs, dimension: np.concatenate(xs, dimension),
    "rev": lambda x, *, dimensions: np.flip(x, dimensions),
    "split": lambda x, *, sizes, axis: np.split(x, np.cumsum(sizes)[:-1], axis),
    "dynamic_slice": _dynamic_slice,
    "tile": lambda x, *, reps: np.tile(x, reps),
    "unstack": lambda x, *, axis: [x.take(i, axis) for i in range(x.shape[axis])],
    **{
        name: _plain(lambda x: x)
        for name in ("stop_gradient", "copy", "copy_p", "reduce_precision", "optimization_barrier",
                     "sharding_constraint", "pvary", "name", "mutable_array")
    },
}  # fmt: skip
UNARY = {
    "neg": np.negative, "exp": np.exp, "exp2": np.exp2, "log": np.log, "log1p": np.log1p, "expm1": np.expm1,
    "tanh": np.tanh, "sqrt": np.sqrt, "square": np.square, "abs": np.abs, "sin": np.sin, "cos": np.cos,
    "sign": np.sign, "floor": np.floor, "ceil": np.ceil, "is_finite": np.isfinite, "not": np.invert,
    "logistic": special.expit, "erf": special.erf, "erfc": special.erfc, "real": np.real, "imag": np.imag,
}  # fmt: skip
BINARY = {
    "add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply, "max": np.maximum,
    "min": np.minimum, "pow": np.power, "atan2": np.arctan2, "eq": np.equal, "ne": np.not_equal,
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "and": np.bitwise_and,
    "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip
POINTWISE = {*UNARY, *BINARY, "rsqrt", "integer_pow", "div", "select_n"}
KERNELS: dict[str, Callable[..., Any]] = {
    **MOVES,
    **{name: _plain(function) for name, function in (UNARY | BINARY).items()},
    "convert_element_type": lambda x, *, new_dtype, **_: x.astype(new_dtype),
    "rsqrt": _plain(lambda x: 1 / np.sqrt(x)),
    "integer_pow": _power,
    "div": _divide,
    "select_n": _select,
    "iota": _iota,
    "pad": _pad,
    "dot_general": _dot,
    "reduce_sum": _reduce(np.sum),
    "reduce_max": _reduce(np.max),
    "reduce_min": _reduce(np.min),
    "reduce_prod": _reduce(np.prod),
    "cumsum": _cumulate(np.cumsum),
    "cumprod": _cumulate(np.cumprod),
}
