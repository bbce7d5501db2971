"""PyTorch's settings of convolutions and poolings as JAX's primitives take them."""

from typing import Any

from lockstep.trace import Node, Trace


def from_torch(theirs: Node, mine: Node, reference: Trace, port: Trace) -> dict[str, Any]:
    """The settings that the reference's operation asks for; empty if the two are no such pair."""
    if "conv" in theirs.op and mine.op == "conv_general_dilated":
        return _convolution(theirs, mine, reference)
    if "pool" in theirs.op and mine.op.startswith("reduce_window"):
        return _pooling(theirs, mine)
    return {}


def _convolution(theirs: Node, mine: Node, reference: Trace) -> dict[str, Any]:
    p = theirs.params
    kernel = reference.nodes[theirs.inputs[1]].shape[2:]
    n = len(kernel)
    stride, padding, dilation = (_each(p.get(k), n) for k in ("stride", "padding", "dilation"))
    if stride is None or padding is None or dilation is None:
        return {}
    groups = int(p.get("groups", 1))
    if not p.get("transposed"):
        return {
            "padding": tuple((x, x) for x in padding), "window_strides": stride, "rhs_dilation": dilation,
            "lhs_dilation": (1,) * n, "feature_group_count": groups,
        }  # fmt: skip
    extra = _each(p.get("output_padding", 0), n) or (0,) * n
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    pads = tuple((r - x, r - x + e) for r, x, e in zip(reach, padding, extra, strict=True))
    return {"padding": pads, "lhs_dilation": stride, "rhs_dilation": dilation, "window_strides": (1,) * n}


def _pooling(theirs: Node, mine: Node) -> dict[str, Any]:
    window = mine.params.get("window_dimensions")
    p = theirs.params
    if not window or "kernel_size" not in p:
        return {}
    spatial = [i for i in range(len(window)) if i not in (0, len(window) - 1)]
    n = len(spatial)
    kernel, padding = _each(p["kernel_size"], n), _each(p.get("padding", 0), n)
    stride = _each(p.get("stride") or p["kernel_size"], n)
    if kernel is None or padding is None or stride is None:
        return {}
    fill = lambda values, rest: (rest, *values, rest)  # noqa: E731
    return {
        "padding": fill([(x, x) for x in padding], (0, 0)),
        "window_strides": fill(stride, 1),
        "window_dimensions": fill(kernel, 1),
    }


def _each(value: Any, n: int) -> tuple[int, ...] | None:
    """A setting for each axis, of one for all or a list."""
    if isinstance(value, int):
        return (value,) * n
    return tuple(value) * (n if len(value) == 1 else 1) if isinstance(value, list | tuple) and value else None
