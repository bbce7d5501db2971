"""What a module is, how its arrays are laid out in each framework, and which parameter is which.

Names of classes decide, so that neither framework is imported here. Arrays are NumPy's.
"""

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Path = tuple[Any, ...]  # of strings and numbers
Layout = tuple[int, ...]  # the permutation of axes that takes PyTorch's array to Flax's

CONVOLUTIONS = ("conv", "conv transpose")
CHANNELS_FIRST = (*CONVOLUTIONS, "batch norm", "group norm", "instance norm", "pool")  # in PyTorch
NORMS = ("batch norm", "layer norm", "group norm", "instance norm", "rms norm")
UNITS = ("attention", "gru cell", "lstm cell", "rnn cell", "recurrent")  # one module here, several there
RANDOM = ("dropout",)

TORCH_KINDS = {
    "linear": r"Linear|NonDynamicallyQuantizableLinear|Bilinear",
    "conv": r"Conv[123]d",
    "conv transpose": r"ConvTranspose[123]d",
    "batch norm": r"BatchNorm[123]d|SyncBatchNorm|FrozenBatchNorm2d",
    "instance norm": r"InstanceNorm[123]d",
    "layer norm": r"LayerNorm",
    "group norm": r"GroupNorm",
    "rms norm": r"RMSNorm",
    "embedding": r"Embedding",
    "attention": r"MultiheadAttention",
    "gru cell": r"GRUCell",
    "lstm cell": r"LSTMCell",
    "rnn cell": r"RNNCell",
    "recurrent": r"LSTM|GRU|RNN",
    "dropout": r"(Alpha|FeatureAlpha)?Dropout[123]?d?|StochasticDepth|RReLU",
    "pool": r"(Adaptive)?(Max|Avg|LP)Pool[123]d|Upsample|UpsamplingBilinear2d|PixelShuffle",
    "prelu": r"PReLU",
    "identity": r"Identity",
}
FLAX_KINDS = {
    "linear": r"Linear|LinearGeneral|Einsum",
    "conv": r"Conv",
    "conv transpose": r"ConvTranspose",
    "batch norm": r"BatchNorm",
    "instance norm": r"InstanceNorm",
    "layer norm": r"LayerNorm",
    "group norm": r"GroupNorm",
    "rms norm": r"RMSNorm",
    "embedding": r"Embed",
    "attention": r"MultiHeadAttention",
    "gru cell": r"GRUCell",
    "lstm cell": r"LSTMCell|OptimizedLSTMCell",
    "rnn cell": r"SimpleCell",
    "recurrent": r"RNN",
    "dropout": r"Dropout",
    "prelu": r"PReLU",
}


def kind_of(module: Any) -> str:
    """One of the kinds above; for a module that the frameworks do not define, its class's name."""
    for cls in type(module).__mro__:
        package = cls.__module__.split(".")[0]
        table = {"torch": TORCH_KINDS, "torchvision": TORCH_KINDS, "flax": FLAX_KINDS}.get(package, {})
        for kind, pattern in table.items():
            if re.fullmatch(pattern, cls.__name__):
                return kind
    return type(module).__name__


def is_known(kind: str) -> bool:
    """Whether a kind has rules, i.e. is not just the name of somebody's class."""
    return kind in TORCH_KINDS


def plain(name: str) -> str:
    """A path without what differs by habit: separators, capital letters, the prefix of a wrapper."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


# --- activations -------------------------------------------------------------------------------------------


def layouts(ndim: int, kind: str) -> list[Layout]:
    """The permutations that are tried, the likeliest first."""
    same = tuple(range(ndim))
    last = (0, *range(2, ndim), 1)
    swapped = (1, 0, *range(2, ndim))
    if ndim < 3:
        return [same]
    return [last, same, swapped] if kind in CHANNELS_FIRST else [same, last, swapped]


def find_layout(array: np.ndarray, other: np.ndarray, kind: str, module: Any = None) -> Layout | None:
    """The permutation from PyTorch's array to Flax's, or None if no shape fits.

    Where several fit, a kind with channels decides, and else the values.
    """
    if array.ndim != other.ndim:
        return None
    if kind in ("attention", "recurrent") and not getattr(module, "batch_first", True) and array.ndim > 2:
        swapped = (1, 0, *range(2, array.ndim))
        if array.transpose(swapped).shape == other.shape:
            return swapped
    fits = [perm for perm in layouts(array.ndim, kind) if array.transpose(perm).shape == other.shape]
    if len(fits) > 1 and kind not in CHANNELS_FIRST and np.isfinite(other).all():
        fits.sort(key=lambda perm: float(np.abs(array.transpose(perm) - other).sum()))
    return fits[0] if fits else None


def canonical(framework: str, kind: str, role: str, arrays: list) -> list:
    """The arrays of a call in PyTorch's order, without those that only one framework has.

    Args:
        framework: ``torch`` or ``flax``.
        kind: of the module.
        role: ``inputs`` or ``outputs``.
        arrays: in the order in which the call has them.
    """
    if framework == "torch" and kind == "attention" and role == "outputs":
        return arrays[:1]  # without the weights
    if framework == "flax" and kind == "recurrent" and role == "outputs":
        return arrays[-1:]  # without the carry, which comes first
    if framework == "torch" and kind == "recurrent" and role == "outputs":
        return arrays[:1]
    if framework == "flax" and kind in ("gru cell", "rnn cell"):
        return arrays[::-1] if role == "inputs" else arrays[:1]  # (carry, x) -> (carry, carry)
    if framework == "flax" and kind == "lstm cell":  # ((c, h), x) -> ((c, h), h)
        return arrays[::-1] if role == "inputs" else [arrays[1], arrays[0]]
    return arrays


# --- parameters --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """One variable of a Flax leaf and the tensors of the PyTorch leaf that it is made of."""

    variable: Path  # within the leaf
    sources: tuple[str, ...]
    to_flax: Callable[..., np.ndarray]  # the tensors -> the variable
    gradient: Callable[..., np.ndarray]  # the tensors' gradients -> the variable's


def link(kind: str, tensors: Mapping[str, np.ndarray], flax: Mapping[Path, Any], leaf: Any) -> list[Link]:
    """Which variable of a Flax leaf is which tensor of a PyTorch leaf, by kind, name and shape.

    Args:
        kind: of the PyTorch leaf.
        tensors: parameters and statistics of the PyTorch leaf, by name.
        flax: the variables of the Flax leaf, or their shapes, by path within it.
        leaf: the Flax leaf.
    """
    links = []
    for path, variable in flax.items():
        found = _find(kind, tensors, path, tuple(variable.shape), leaf)
        if found:
            sources, to_flax, gradient = found
            try:
                fits = to_flax(*(tensors[name] for name in sources)).shape == tuple(variable.shape)
            except (ValueError, IndexError):
                fits = False
            if fits:
                links.append(Link(path, sources, to_flax, gradient or to_flax))
    return links


def _find(kind: str, tensors: Mapping[str, np.ndarray], path: Path, shape: tuple[int, ...], leaf: Any):
    """The sources of one variable, what makes it of them, and what makes its gradient if that differs."""
    names = [str(part) for part in path]
    if kind == "attention":
        return _find_attention(tensors, names, shape)
    if kind in UNITS:
        return _find_recurrent(kind, tensors, names, leaf) or _find_by_name(kind, tensors, names, shape, leaf)
    return _find_by_name(kind, tensors, names, shape, leaf)


ROLES = {
    "weight": "kernel|weight|w|scale|embedding|gamma|negative_slope|g",
    "bias": "bias|b|beta|offset",
    "running_mean": "mean|running_mean|moving_mean",
    "running_var": "var|variance|running_var|moving_variance",
}


def role_of(name: str) -> str:
    """PyTorch's name for a parameter or statistic."""
    return next((role for role, names in ROLES.items() if re.fullmatch(names, name)), plain(name))


def _find_by_name(kind, tensors, names, shape, leaf):
    *prefix, last = names
    for name, tensor in tensors.items():
        *torch_prefix, torch_last = name.split(".")
        if role_of(torch_last) == role_of(last) and plain("".join(torch_prefix)) == plain("".join(prefix)):
            arrange = arrangement(kind, tensor.shape, shape, last, leaf)
            return ((name,), arrange, None) if arrange else None
    return None


def arrangement(kind: str, source: tuple[int, ...], shape: tuple[int, ...], name: str, leaf: Any = None):
    """A function from PyTorch's layout of a parameter to Flax's, or None if no layout fits.

    ``name`` is Flax's: a ``kernel`` has its outputs last, everything else is as in PyTorch if it fits.
    """
    if kind == "conv transpose" and len(source) > 2:
        spatial = tuple(range(2, len(source)))
        if getattr(leaf, "transpose_kernel", False):
            return lambda w: w.transpose(*spatial, 1, 0)
        return lambda w: np.flip(w, spatial).transpose(*spatial, 0, 1)
    standard = (*range(2, len(source)), 1, 0) if len(source) > 1 else (0,) * len(source)
    same, last = tuple(range(len(source))), (*range(1, len(source)), 0)
    orders = [standard, same, last] if name == "kernel" else [same, standard, last]
    for order in orders:
        if tuple(source[axis] for axis in order) == shape:
            return lambda w, order=order: w.transpose(order)
    if len(source) == 2 and name == "kernel" and np.prod(source) == np.prod(shape):  # several heads
        return lambda w: w.T.reshape(shape)
    if np.prod(source) == np.prod(shape) and (len(source) < 2 or len(shape) < 2):
        return lambda w: w.reshape(shape)
    fits = [p for p in itertools.permutations(same) if tuple(source[axis] for axis in p) == shape]
    return (lambda w: w.transpose(fits[0])) if len(fits) == 1 else None


PROJECTIONS = {"q|query|wq|qproj|toq": 0, "k|key|wk|kproj|tok": 1, "v|value|wv|vproj|tov": 2}


def _find_attention(tensors, names, shape):
    module, last = plain("".join(names[:-1])), names[-1]
    if module in ("qkv", "inproj", "cattn", "toqkv"):
        source = "in_proj_bias" if last == "bias" else "in_proj_weight"
        return (source,), (lambda w: (w if last in ("bias", "weight") else w.T).reshape(shape)), None
    position = next((p for pattern, p in PROJECTIONS.items() if re.fullmatch(pattern, module)), None)
    if position is not None:
        if last == "bias":
            return ("in_proj_bias",), (lambda b: np.split(b, 3)[position].reshape(shape)), None
        if "in_proj_weight" in tensors:
            return ("in_proj_weight",), (lambda w: np.split(w, 3)[position].T.reshape(shape)), None
        return (f"{'qkv'[position]}_proj_weight",), (lambda w: w.T.reshape(shape)), None
    if re.fullmatch("o|out|outproj|proj|wo|toout|output", module):
        if last == "bias":
            return ("out_proj.bias",), (lambda b: b.reshape(shape)), None
        return ("out_proj.weight",), (lambda w: w.T.reshape(shape)), None
    return None


def is_attention(names: set[str]) -> bool:
    """Whether a Flax module's children are those of an attention: three projections or one, and an output."""
    children = {plain(name) for name in names}
    output = any(re.fullmatch("o|out|outproj|proj|wo|toout|output", name) for name in children)
    separate = all(any(re.fullmatch(p, name) for name in children) for p in PROJECTIONS)
    return output and (separate or bool(children & {"qkv", "inproj", "cattn", "toqkv"}))


def _find_recurrent(kind, tensors, names, leaf):
    if kind == "recurrent":
        kind = kind_of(getattr(leaf, "cell", None))
        names = names[1:]  # without "cell"
    suffix = "_l0" if "weight_ih_l0" in tensors else ""
    w_i, w_h, b_i, b_h = (f"{name}{suffix}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    biased = b_i in tensors
    match names:
        case ["dense_i", "kernel"]:
            return (w_i,), np.transpose, None
        case ["dense_h", "kernel"]:
            return (w_h,), np.transpose, None
        case ["dense_i" | "dense_h", "bias"] if biased and kind == "gru cell":
            # n = tanh(i_n + r (h_n + b_hn)): Flax has no b_hn; the other two add to the input's bias.
            return (b_i, b_h), _gru_bias, lambda g_i, g_h: g_i
        case ["dense_i" | "dense_h", "bias"] if biased:
            return (b_i, b_h), np.add, lambda g_i, g_h: g_h
        case [("ii" | "if_" | "ig" | "io" | "hi" | "hf" | "hg" | "ho") as gate, last]:
            position = "ifgo".index(gate[1])
            if last == "kernel":
                source = w_i if gate[0] == "i" else w_h
                return (source,), (lambda w: np.split(w, 4)[position].T), None
            if biased:
                return (
                    (b_i, b_h),
                    lambda i, h: np.split(i + h, 4)[position],
                    lambda i, h: np.split(h, 4)[position],
                )
    return None


def _gru_bias(b_i: np.ndarray, b_h: np.ndarray) -> np.ndarray:
    return b_i + np.concatenate([b_h[: len(b_h) // 3 * 2], np.zeros(len(b_h) // 3, b_h.dtype)])
