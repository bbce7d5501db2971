"""Expressions that ports have by mistake: of whole layers, and of the code between layers.

Everything is computed from arrays in PyTorch's layout, in float64.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Found = Iterator[tuple[str, list[np.ndarray]]]

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "{}": lambda x: x,
    "relu({})": functional.relu,
    "GELU({}) with erf (approximate=False)": functional.gelu,
    "GELU({}) with tanh (nnx.gelu's default, approximate=True)": lambda x: functional.gelu(
        x, approximate="tanh"
    ),
    "SiLU({})": functional.silu,
    "leaky_relu({}) of slope 0.01": functional.leaky_relu,
    "leaky_relu({}) of slope 0.2": lambda x: functional.leaky_relu(x, 0.2),
    "leaky_relu({}) of slope 0.1": lambda x: functional.leaky_relu(x, 0.1),
    "relu6({})": functional.relu6,
    "hard_swish({})": functional.hardswish,
    "hard_sigmoid({})": functional.hardsigmoid,
    "ELU({})": functional.elu,
    "SELU({})": functional.selu,
    "tanh({})": torch.tanh,
    "sigmoid({})": torch.sigmoid,
    "softplus({})": functional.softplus,
    "mish({})": functional.mish,
    "x sigmoid(1.702 x) of {}": lambda x: x * torch.sigmoid(1.702 * x),
    "|{}|": torch.abs,
    "the square of {}": torch.square,
    "the logarithm of {}": torch.log,
    "exp({})": torch.exp,
}
MAX_PLACES = 32  # of a sequence, that are tried
COMMON = ("{}", "relu", "leaky_relu", "GELU", "SiLU", "hard_swish")
ACTIVATIONS = {words: function for words, function in UNARY.items() if words.split("(")[0] in COMMON}


def apply(function: Callable[[Tensor], Tensor], array: np.ndarray) -> np.ndarray:
    """A function of PyTorch, of a NumPy array."""
    return function(torch.tensor(array)).numpy()


# --- the code between layers -------------------------------------------------------------------------------


def expressions(
    sources: Sequence[tuple[str, np.ndarray]], shapes: set[tuple[int, ...]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Candidates for the code between leaves, simple ones first.

    Args:
        sources: the inputs and outputs of the last leaves by name, the latest last.
        shapes: of what is looked for.
    """
    terms: list[tuple[str, np.ndarray]] = []
    for name, array in reversed(sources):
        if array.dtype.kind == "f" and not any(array is known for _, known in terms):
            terms.append((name, array))
    for name, array in terms:
        if array.shape in shapes:
            for words, function in UNARY.items():
                yield words.format(name), apply(function, array)
            for axis in range(array.ndim):
                yield f"softmax over axis {axis} of {name}", apply(lambda x, a=axis: x.softmax(a), array)
                yield (
                    f"log_softmax over axis {axis} of {name}",
                    apply(lambda x, a=axis: x.log_softmax(a), array),
                )
                yield (
                    f"{name} divided by its norm over axis {axis}",
                    apply(lambda x, a=axis: functional.normalize(x, dim=a), array),
                )
    for (name, array), (words, function) in itertools.product(terms[:6], ACTIVATIONS.items()):
        for shape in shapes - {array.shape}:
            yield from _reshaped(words.format(name), apply(function, array), shape)
    yield from _attentions(terms, shapes)
    for (a, x), (b, y) in itertools.combinations(terms, 2):
        if x.shape == y.shape and x.shape in shapes:
            for words, function in ACTIVATIONS.items():
                total = f"{a} + {b}"
                yield words.format(total) if "(" in words else total, apply(function, x + y)
                if function is not UNARY["{}"]:
                    yield f"{words.format(a)} + {b}", apply(function, x) + y
                    yield f"{a} + {words.format(b)}", x + apply(function, y)
                    yield f"{words.format(a)} times {b}", apply(function, x) * y
                    yield f"{a} times {words.format(b)}", x * apply(function, y)
                    yield f"{words.format(a)} + {words.format(b)}", apply(function, x) + apply(function, y)
            for words in ("{}", "relu({})"):
                yield words.format(f"{a} + 2 times {b}"), apply(UNARY[words], x + 2 * y)
                yield words.format(f"{b} + 2 times {a}"), apply(UNARY[words], y + 2 * x)
            yield f"{a} times {b}", x * y
            yield f"{b} - {a}", y - x
        else:
            yield from _gated(a, x, b, y, shapes)
    for name, array in terms:
        if array.shape in shapes and array.ndim > 1:
            root = math.sqrt(array.shape[-1])
            yield f"{name} times the square root of {array.shape[-1]}", array * root
            yield f"{name} divided by the square root of {array.shape[-1]}", array / root


def _gated(
    a: str, x: np.ndarray, b: str, y: np.ndarray, shapes: set[tuple[int, ...]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Sums and products in which one is broadcast: position embeddings, layer scales, squeezes."""
    if x.ndim < y.ndim or x.size < y.size:
        a, x, b, y = b, y, a, x
    if x.ndim == 4 and y.shape == x.shape[:2]:
        y = y[:, :, None, None]
    if x.shape not in shapes:
        return
    try:
        y = np.broadcast_to(y, x.shape)
    except ValueError:
        return
    root = math.sqrt(x.shape[-1])
    yield f"{a} times the square root of {x.shape[-1]} + {b}", x * root + y
    for words, function in ACTIVATIONS.items():
        left = apply(function, x)
        yield f"{words.format(a)} + {b}", left + y
        yield f"{words.format(a)} + {b} shifted by one", left + np.roll(y, 1, -2 if y.ndim > 1 else 0)
        yield f"{words.format(a)} times {b}", left * y
        for gate in ("sigmoid({})", "hard_sigmoid({})", "tanh({})"):
            yield f"{words.format(a)} times {gate.format(b)}", left * apply(UNARY[gate], y)


def _reshaped(name: str, array: np.ndarray, shape: tuple[int, ...]) -> Iterator[tuple[str, np.ndarray]]:
    """Flattening, pooling and resizing that give a shape."""
    spatial = tuple(range(2, array.ndim))
    if array.ndim > 2 and array.size == math.prod(shape) and array.shape[0] == shape[0]:
        last = array.transpose(0, *spatial, 1)
        first = "NCHW" if array.ndim == 4 else "(batch, channels, length)"
        yield f"{name} flattened as {first}", array.reshape(shape)
        yield (
            f"{name} flattened as NHWC" if array.ndim == 4 else f"{name} transposed and flattened",
            last.reshape(shape),
        )
        if array.ndim == 4 and len(shape) == 3:
            yield f"{name} flattened column by column", array.transpose(0, 3, 2, 1).reshape(shape)
    if array.ndim > 2 and len(shape) == 2 and shape == array.shape[:2]:
        yield f"the mean of {name} over space", array.mean(spatial)
        yield f"the maximum of {name} over space", array.max(spatial)
        yield f"the sum of {name} over space", array.sum(spatial)
        for axis in spatial:
            rest = array.mean(axis)
            if rest.shape == shape:
                yield f"the mean of {name} over axis {axis}", rest
    if array.ndim == 3 and len(shape) == 2 and shape == (array.shape[0], array.shape[2]):
        yield f"the last of {name}", array[:, -1]
        yield f"the first of {name}", array[:, 0]
        yield f"the mean of {name} over axis 1", array.mean(1)
        yield f"the maximum of {name} over axis 1", array.max(1)
        yield f"the sum of {name} over axis 1", array.sum(1)
    if array.ndim == 3 and len(shape) == 2:
        for axis in (1, 2):
            for index in range(min(array.shape[axis], MAX_PLACES)):
                yield f"{name} at {index} of axis {axis}", array.take(index, axis)
    if array.ndim == 4 and len(shape) == 4 and array.shape[:2] == shape[:2]:
        yield from _resized(name, torch.from_numpy(np.ascontiguousarray(array)), shape)


def _resized(name: str, x: Tensor, shape: tuple[int, ...]) -> Iterator[tuple[str, np.ndarray]]:
    height, size = x.shape[2], shape[2]
    for kernel, stride in itertools.product((2, 3), (1, 2, 3)):
        for low, high in ((0, 0), (1, 1), (0, 1), (1, 0)):
            if (height + low + high - kernel) // stride + 1 != size:
                continue
            pads = (low, high, low, high)
            where = f"{kernel}x{kernel}, stride {stride}, padding ({low}, {high})"
            padded = functional.pad(x, pads, value=-math.inf)
            yield f"max pooling of {name}, {where}", functional.max_pool2d(padded, kernel, stride).numpy()
            zeros = functional.avg_pool2d(functional.pad(x, pads), kernel, stride)
            counts = functional.avg_pool2d(functional.pad(torch.ones_like(x), pads), kernel, stride)
            yield f"average pooling of {name}, {where}", zeros.numpy()
            if low or high:
                words = f"average pooling of {name}, {where}, without counting the padding"
                yield words, (zeros / counts).numpy()
    if size == (height + 1) // 2:
        yield f"{name}[..., ::2, ::2]", x[:, :, ::2, ::2].numpy()
    if size > height or size * 2 <= height:
        for words, options in {
            "nearest": {"mode": "nearest"},
            "bilinear, align_corners=True": {"mode": "bilinear", "align_corners": True},
            "bilinear, align_corners=False": {"mode": "bilinear", "align_corners": False},
            "bilinear with antialiasing": {"mode": "bilinear", "antialias": True},
            "bicubic": {"mode": "bicubic"},
            "bicubic, align_corners=True": {"mode": "bicubic", "align_corners": True},
        }.items():
            yield f"{name} resized ({words})", functional.interpolate(x, shape[2:], **options).numpy()


def _attentions(
    terms: list[tuple[str, np.ndarray]], shapes: set[tuple[int, ...]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Attention of the last three tensors, or of one that holds all three."""
    same = [(n, x) for n, x in terms if x.ndim == 3 and n.startswith("the output")]
    fused = [(n, x) for n, x in same if x.shape[-1] % 3 == 0 and (*x.shape[:2], x.shape[2] // 3) in shapes]
    if fused:
        array = fused[0][1]
        for heads in _heads(array.shape[2] // 3):
            whole = array.reshape(*array.shape[:2], 3, heads, -1)
            yield from _attention(f"qkv split as (3, {heads} heads, size)", *np.moveaxis(whole, 2, 0))
            apart = array.reshape(*array.shape[:2], heads, 3, array.shape[2] // 3 // heads)
            yield from _attention(f"qkv split as ({heads} heads, 3, size)", *np.moveaxis(apart, 3, 0))
            mixed = array.reshape(*array.shape[:2], heads, array.shape[2] // 3 // heads, 3)
            yield from _attention(f"qkv split as ({heads} heads, size, 3)", *np.moveaxis(mixed, 4, 0))
    three = [(n, x) for n, x in same if x.shape in shapes][:3]
    if len(three) == 3:
        (_, v), (_, k), (_, q) = three
        for heads in _heads(q.shape[2]):
            q_, k_, v_ = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v))
            yield from _attention(f"{heads} heads", q_, k_, v_)
            q_, k_, v_ = (np.swapaxes(x.reshape(*x.shape[:2], -1, heads), 2, 3) for x in (q, k, v))
            yield from _attention(f"{heads} heads split as (size, heads)", q_, k_, v_)
            q_, k_, v_ = (x.reshape(*x.shape[:2], heads, -1) for x in (k, q, v))
            yield from _attention(f"{heads} heads, query and key exchanged", q_, k_, v_)


def _heads(width: int) -> list[int]:
    return [h for h in (1, 2, 3, 4, 6, 8, 12, 16) if width % h == 0]


def _attention(name: str, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Attention of (batch, length, heads, size), with the masks and scales that people use."""
    scores = np.einsum("bqhd,bkhd->bhqk", q, k)
    size, width = q.shape[-1], q.shape[-1] * q.shape[-2]
    causal = np.tril(np.ones(scores.shape[-2:], bool))
    strict = np.tril(causal, -1)
    for scale_words, scale in {
        "": 1 / math.sqrt(size),
        ", not scaled": 1.0,
        f", scaled by 1 / the square root of {width} (all heads)": 1 / math.sqrt(width),
        f", scaled by 1 / {size}": 1 / size,
    }.items():
        for mask_words, mask in {
            "": None,
            ", causal": causal,
            ", causal without the present": strict,
        }.items():
            s = scores * scale if mask is None else np.where(mask, scores * scale, -1e30)
            for axis_words, axis in {"": -1, ", softmax over the queries": -2}.items():
                e = np.exp(s - s.max(axis, keepdims=True))
                out = np.einsum("bhqk,bkhd->bqhd", e / e.sum(axis, keepdims=True), v)
                words = f"attention ({name}{scale_words}{mask_words}{axis_words})"
                yield words, out.reshape(*out.shape[:2], -1)
                yield (
                    f"{words} with its heads joined as (size, heads)",
                    np.swapaxes(out, 2, 3).reshape(*out.shape[:2], -1),
                )
                if out.shape[1] * out.shape[2]:
                    joined = np.swapaxes(out, 1, 2).reshape(out.shape[0], out.shape[1], -1)
                    yield f"{words} joined without moving the heads back", joined


# --- layers ------------------------------------------------------------------------------------------------


def outputs(kind: str, module: Any, inputs: list[np.ndarray], tensors: Mapping[str, np.ndarray]) -> Found:
    """What a layer would give with a mistake, for each kind that has rules."""
    functions: dict[str, Callable[..., Found]] = {
        "linear": _linear,
        "conv": _conv,
        "embedding": _embedding,
        "attention": _attention_layer,
        "gru cell": _gru,
        "lstm cell": _lstm,
        "rnn cell": _rnn,
    }
    if kind in ("layer norm", "rms norm", "batch norm", "group norm", "instance norm"):
        yield from _norm(kind, module, inputs[0], tensors)
    elif kind in functions:
        yield from functions[kind](module, inputs, tensors)


def _linear(module: Any, inputs: list[np.ndarray], tensors: Mapping[str, np.ndarray]) -> Found:
    x, w, b = inputs[0], tensors["weight"], tensors.get("bias")
    if b is not None:
        yield "Flax leaves out the bias (use_bias=False?)", [x @ w.T]
        yield "Flax adds the bias twice", [x @ w.T + 2 * b]
    if w.shape[0] == w.shape[1]:
        yield "the weight is transposed", [x @ w + (0 if b is None else b)]
        yield "the weight is transposed and the bias left out", [x @ w]


def _conv(module: Any, inputs: list[np.ndarray], tensors: Mapping[str, np.ndarray]) -> Found:
    x, w = torch.from_numpy(inputs[0]), torch.from_numpy(tensors["weight"])
    b = None if "bias" not in tensors else torch.from_numpy(tensors["bias"])
    spatial, size = tuple(range(2, w.ndim)), w.ndim - 2
    function = (functional.conv1d, functional.conv2d, functional.conv3d)[size - 1]
    own = [module.padding] * size if isinstance(module.padding, int) else module.padding
    own = [(0, 0)] * size if isinstance(own, str) else [(p, p) for p in own]

    def run(
        w: Tensor, b: Tensor | None, pads: list, stride: Any = module.stride, dilation: Any = module.dilation
    ) -> list:
        padded = functional.pad(x, [p for low, high in reversed(pads) for p in (low, high)])
        try:
            return [function(padded, w, b, stride, 0, dilation, module.groups).numpy()]
        except RuntimeError:  # the kernel is larger than the image
            return []

    yield "Flax leaves out the bias (use_bias=False?)", run(w, None, own)
    yield "the kernel is flipped in space", run(w.flip(spatial), b, own)
    if size == 2 and w.shape[2] == w.shape[3]:
        yield "height and width of the kernel are exchanged", run(w.transpose(2, 3), b, own)
    if w.shape[0] == w.shape[1]:
        yield "inputs and outputs of the kernel are exchanged", run(w.transpose(0, 1), b, own)
    for low, high in itertools.product(range(4), repeat=2):
        yield f"Flax pads ({low}, {high}), PyTorch {tuple(own)}", run(w, b, [(low, high)] * size)
    for n in (1, 2):
        yield f"Flax's dilation is {n}, PyTorch's {tuple(module.dilation)}", run(w, b, own, dilation=n)
        yield f"Flax's stride is {n}, PyTorch's {tuple(module.stride)}", run(w, b, own, stride=n)


def _embedding(module: Any, inputs: list[np.ndarray], tensors: Mapping[str, np.ndarray]) -> Found:
    ids, w = inputs[0], tensors["weight"]
    root = math.sqrt(w.shape[1])
    yield f"Flax multiplies the embedding by the square root of {w.shape[1]}", [w[ids] * root]
    yield f"PyTorch multiplies the embedding by the square root of {w.shape[1]}", [w[ids] / root]
    for shift in (1, -1):
        yield f"Flax's ids are shifted by {shift}", [w[np.clip(ids + shift, 0, len(w) - 1)]]


def _norm(kind: str, module: Any, x: np.ndarray, tensors: Mapping[str, np.ndarray]) -> Found:
    """Normalisations with up to two settings changed."""
    last = kind in ("layer norm", "rms norm")
    size = len(getattr(module, "normalized_shape", (1,)))
    spatial = tuple(range(2, x.ndim))
    groups = getattr(module, "num_groups", 1)
    axes: dict[str, tuple[int, ...]] = {}
    if last:
        axes["of the last axes"] = tuple(range(x.ndim - size, x.ndim))
        axes["over the whole example"] = tuple(range(1, x.ndim))
        axes["over the first axis"] = (0,)
        axes["over the second axis"] = (1,)
        axes["over all axes but the last"] = tuple(range(x.ndim - 1))
    else:
        axes["over the batch"] = (0, *spatial)
        axes["over each example's channel"] = spatial
        axes["over each example"] = (1, *spatial)
        axes["over the channels"] = (1,)
    eps = module.eps if module.eps is not None else float(np.finfo(np.float64).eps)
    own_axes = next(iter(axes)) if kind != "instance norm" else "over each example's channel"
    w, b = tensors.get("weight"), tensors.get("bias")
    shape = (
        (1,) * (x.ndim - size) + np.shape(w)[-size:]
        if last and w is not None
        else (1, -1) + (1,) * len(spatial)
    )
    running = kind == "batch norm" and not module.training and "running_mean" in tensors
    choices: dict[str, list[Any]] = {
        "epsilon": list(dict.fromkeys([eps, 1e-5, 1e-6, 1e-3, 1e-8, 1e-12, 1e-2])),
        "root": ["inside", "outside"],
        "variance": ["biased", "unbiased"],
        "centre": [kind != "rms norm", kind == "rms norm"],
        "affine": ["both", "no bias", "no scale", "neither", "1 + scale"],
        "axes": [own_axes, *[a for a in axes if a != own_axes]],
        "statistics": ["running", "batch"] if running else ["batch"],
        "groups": [groups, *(g for g in (1, 2, 4, 8, 16, 32) if g != groups)]
        if kind == "group norm"
        else [groups],
    }
    base = {key: values[0] for key, values in choices.items()}
    words = {
        "epsilon": "Flax's epsilon is {}, PyTorch's " + f"{eps:g}",
        "root": "Flax adds epsilon outside the root, PyTorch inside",
        "variance": "Flax divides the variance by n - 1, PyTorch by n",
        "centre": "Flax subtracts the mean, PyTorch does not"
        if kind == "rms norm"
        else "Flax does not subtract the mean (RMS norm)",
        "affine": "scale and bias: Flax has {}",
        "axes": "Flax normalises {}, PyTorch " + own_axes,
        "statistics": "Flax normalises with the batch's statistics, PyTorch with the running ones",
        "groups": "Flax has {} groups, PyTorch " + str(groups),
    }
    changes = [(key, value) for key, values in choices.items() for value in values[1:]]
    for some in [*([c] for c in changes), *itertools.combinations(changes, 2)]:
        if len({key for key, _ in some}) < len(some):
            continue
        o = base | dict(some)
        if kind == "group norm" and x.shape[1] % o["groups"]:
            continue
        y = x.reshape(x.shape[0] * o["groups"], -1) if kind == "group norm" and o["axes"] == own_axes else x
        over = (1,) if y is not x else axes[o["axes"]]
        if o["statistics"] == "running" and running:
            mean, var = (tensors[n].reshape(shape) for n in ("running_mean", "running_var"))
        else:
            mean = y.mean(over, keepdims=True) if o["centre"] else np.zeros(1)
            var = ((y - mean) ** 2).mean(over, keepdims=True)
            n = math.prod(y.shape[a] for a in over)
            if o["variance"] == "unbiased" and n > 1:
                var = var * n / (n - 1)
        if not o["centre"]:
            mean = np.zeros(1)
        y = (y - mean) / (
            np.sqrt(var) + o["epsilon"] if o["root"] == "outside" else np.sqrt(var + o["epsilon"])
        )
        y = y.reshape(x.shape)
        if w is not None and o["affine"] not in ("no scale", "neither"):
            y = y * (w.reshape(shape) + (o["affine"] == "1 + scale"))
        if b is not None and o["affine"] not in ("no bias", "neither"):
            y = y + b.reshape(shape)
        yield "; ".join(words[key].format(value) for key, value in some), [y]


def statistics(module: Any, x: np.ndarray, tensors: Mapping[str, np.ndarray], names: list[str]) -> Found:
    """Running statistics as other rules update them; ``names`` says which are wanted, in order."""
    axes = tuple(a for a in range(x.ndim) if a != 1)
    n = x.size // x.shape[1]
    mean, var = x.mean(axes), x.var(axes)
    m = module.momentum or 0.1
    kept = {name: tensors[name] for name in names}
    yield "Flax does not update the running statistics", [kept[name] for name in names]
    for momentum, unbiased in itertools.product(
        dict.fromkeys((m, 1 - m, 0.01, 0.99, 0.9, 0.1, 1.0)), (True, False)
    ):
        new = {"running_mean": mean, "running_var": var * n / (n - 1) if unbiased else var}
        words = []
        if not unbiased:
            words.append(
                f"the running variance is biased (n, PyTorch n - 1 with n = {n}): nnx.BatchNorm's always is"
            )
        if momentum != m:
            swapped = (
                " (PyTorch's m weighs the new value, Flax's the old one)"
                if math.isclose(momentum, 1 - m)
                else ""
            )
            words.append(f"equal with momentum={1 - m:g}; Flax's is {1 - momentum:g}{swapped}")
        if words:
            yield "; ".join(words), [(1 - momentum) * kept[name] + momentum * new[name] for name in names]
    yield (
        "Flax keeps the standard deviation, PyTorch the variance",
        [
            (1 - m) * kept[name] + m * {"running_mean": mean, "running_var": np.sqrt(var)}[name]
            for name in names
        ],
    )


def _attention_layer(module: Any, inputs: list[np.ndarray], tensors: Mapping[str, np.ndarray]) -> Found:
    if "in_proj_weight" not in tensors or len(inputs) < 3:
        return
    q, k, v = inputs[:3]
    turn = (lambda x: x) if module.batch_first else (lambda x: np.swapaxes(x, 0, 1))
    q, k, v = (turn(x) for x in (q, k, v))
    weights = np.split(tensors["in_proj_weight"], 3)
    biases = np.split(tensors.get("in_proj_bias", np.zeros(3 * len(weights[0]))), 3)
    out, offset = tensors["out_proj.weight"], tensors.get("out_proj.bias", np.zeros(len(weights[0])))
    projected = [x @ w.T + b for x, w, b in zip((q, k, v), weights, biases, strict=True)]
    bare = [x @ w.T for x, w in zip((q, k, v), weights, strict=True)]
    whole = np.concatenate(projected, -1)
    heads = module.num_heads

    def split(x: np.ndarray, h: int = heads) -> np.ndarray:
        return x.reshape(*x.shape[:2], h, -1)

    for words, parts in {
        "": [split(x) for x in projected],
        "query and key exchanged": [split(projected[i]) for i in (1, 0, 2)],
        "key and value exchanged": [split(projected[i]) for i in (0, 2, 1)],
        "without the projections' biases": [split(x) for x in bare],
        "the fused projection split by head, (heads, 3, size); PyTorch's is (3, heads, size)": list(
            np.moveaxis(whole.reshape(*whole.shape[:2], heads, 3, -1), 3, 0)
        ),
        **{
            f"{h} heads, PyTorch {heads}": [split(x, h) for x in projected]
            for h in _heads(q.shape[-1])
            if h != heads
        },
    }.items():
        if parts[0].shape == parts[1].shape or words in ("",):
            for name, array in _attention(words or f"{heads} heads", *parts):
                yield f"Flax computes {name}", [turn(array @ out.T + offset)]
                yield f"Flax computes {name} and leaves out the output's bias", [turn(array @ out.T)]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _gates(inputs: list[np.ndarray], tensors: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    x = inputs[0]
    w_i, w_h = tensors["weight_ih"], tensors["weight_hh"]
    b_i = tensors.get("bias_ih", np.zeros(len(w_i)))
    b_h = tensors.get("bias_hh", np.zeros(len(w_i)))
    h = inputs[1] if len(inputs) > 1 else np.zeros((*x.shape[:-1], w_h.shape[1]))
    return x @ w_i.T, h @ w_h.T, b_i, b_h, h


def _gru(module: Any, inputs: list[np.ndarray], tensors: Mapping[str, np.ndarray]) -> Found:
    i, g, b_i, b_h, h = _gates(inputs, tensors)
    names = "rzn"

    def cell(
        order: str = names,
        before: bool = False,
        swapped: bool = False,
        b_new: bool = True,
        zero: bool = False,
    ) -> list:
        at = {name: order.index(name) for name in names}
        xs, hs = np.split(i + b_i, 3, -1), np.split(g + (0 if zero else b_h), 3, -1)
        r = _sigmoid(xs[at["r"]] + hs[at["r"]])
        z = _sigmoid(xs[at["z"]] + hs[at["z"]])
        n_h = hs[at["n"]]
        if before:
            w = np.split(tensors["weight_hh"], 3)[at["n"]]
            n_h = (r * h) @ w.T + np.split(b_h, 3)[at["n"]]
            n = np.tanh(xs[at["n"]] + n_h)
        else:
            if not b_new:
                n_h = n_h - np.split(b_h, 3)[at["n"]]
            n = np.tanh(xs[at["n"]] + r * n_h)
        return [z * n + (1 - z) * h if swapped else (1 - z) * n + z * h]

    yield (
        "Flax has no recurrent bias of the new gate (PyTorch's bias_hh, last third); nnx.GRUCell never has",
        cell(b_new=False),
    )
    yield "Flax applies the reset gate before the product, PyTorch after it", cell(before=True)
    yield "Flax's update gate weighs the new state, PyTorch's the old one", cell(swapped=True)
    yield "Flax leaves out bias_hh", cell(zero=True)
    for order in itertools.permutations(names):
        if order != tuple(names):
            yield (
                f"Flax's gates are in the order {', '.join(order)}; PyTorch's are r, z, n",
                cell("".join(order)),
            )


def _lstm(module: Any, inputs: list[np.ndarray], tensors: Mapping[str, np.ndarray]) -> Found:
    i, g, b_i, b_h, h = _gates(inputs, tensors)
    c = inputs[2] if len(inputs) > 2 else np.zeros_like(h)

    def cell(order: str = "ifgo", forget: float = 0.0, b: Any = b_i + b_h, last: Callable = np.tanh) -> list:
        parts = dict(zip(order, np.split(i + g + b, 4, -1), strict=True))
        new = _sigmoid(parts["f"] + forget) * c + _sigmoid(parts["i"]) * np.tanh(parts["g"])
        return [_sigmoid(parts["o"]) * last(new), new]

    yield "Flax adds 1 to the forget gate's bias", cell(forget=1.0)
    yield "Flax leaves out bias_hh", cell(b=b_i)
    yield "Flax leaves out bias_ih", cell(b=b_h)
    yield "Flax has no tanh of the new cell state", cell(last=lambda x: x)
    for order in itertools.permutations("ifgo"):
        if "".join(order) != "ifgo":
            yield (
                f"Flax's gates are in the order {', '.join(order)}; PyTorch's are i, f, g, o",
                cell("".join(order)),
            )


def _rnn(module: Any, inputs: list[np.ndarray], tensors: Mapping[str, np.ndarray]) -> Found:
    i, g, b_i, b_h, _ = _gates(inputs, tensors)
    for words, function in {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0)}.items():
        if words != module.nonlinearity:
            yield (
                f"Flax's activation is {words}, PyTorch's {module.nonlinearity}",
                [function(i + g + b_i + b_h)],
            )
    yield "Flax leaves out bias_hh", [np.tanh(i + g + b_i)]
