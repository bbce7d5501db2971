"""Ways to resize images that frameworks have, to name the one that a model uses."""

from collections.abc import Callable, Iterator

import numpy as np

Array = np.ndarray


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


def matrices(n: int, m: int) -> Iterator[tuple[str, Array]]:
    """Matrices (m, n) that resize n numbers to m, each with what it does in words."""
    places = {
        "align_corners=True": np.arange(m) * ((n - 1) / max(m - 1, 1)),
        "align_corners=False": (np.arange(m) + 0.5) * n / m - 0.5,
    }
    for word, at in places.items():
        for name, kernel in KERNELS.items():
            for smooth in (False, True) if n > m else (False,):
                scale = n / m if smooth else 1.0
                wide = np.arange(-8 * n, 9 * n)
                weights = kernel((at[:, None] - wide) / scale)
                for edge in ("repeated", "left out"):
                    found = np.zeros((m, n))
                    inside = np.clip(wide, 0, n - 1)
                    kept = weights if edge == "repeated" else np.where(wide == inside, weights, 0)
                    np.add.at(found.T, inside, kept.T)
                    found /= found.sum(1, keepdims=True)
                    shown = f"{name}, {word}" + (", antialias" if smooth else "")
                    yield f"{shown}, edges {edge}", found
    floor = np.minimum((np.arange(m) * n / m).astype(int), n - 1)
    middle = np.minimum(((np.arange(m) + 0.5) * n / m).astype(int), n - 1)
    yield "nearest", np.eye(n)[floor]
    yield "nearest to the middle", np.eye(n)[middle]


def name_resize(x: Array, y: Array, tolerance: float) -> str:
    """How an image follows from another by resizing two axes; empty if it does not."""
    axes = [a for a in range(x.ndim) if x.ndim == y.ndim and x.shape[a] != y.shape[a]]
    if len(axes) != 2 or any(x.shape[a] > 64 or y.shape[a] > 128 for a in axes):
        return ""
    first, second = axes
    columns = dict(matrices(x.shape[second], y.shape[second]))
    for name, rows in matrices(x.shape[first], y.shape[first]):
        if name not in columns:
            continue
        made = np.moveaxis(np.tensordot(rows, x, (1, first)), 0, first)
        made = np.moveaxis(np.tensordot(columns[name], made, (1, second)), 0, second)
        if np.abs(made - y).max() <= tolerance * np.abs(y).max():
            return name
    return ""
