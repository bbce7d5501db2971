"""Whether two arrays hold the same numbers, however they are arranged, repeated or masked."""

import itertools
import math
from collections.abc import Iterator

import numpy as np

EXACT = 1e-9  # float64: relative to the largest number; rounding stays far below
NEAR = 3e-7  # a few roundings to float32
MASK, GAP = 5e3, 100.0  # numbers above MASK and GAP times all smaller ones are masks
CHUNK = 2**16  # numbers of an array that fit a processor's cache with what is made of them


def unrepeated(x: np.ndarray) -> np.ndarray:
    """A view without the axes along which NumPy repeats the same memory."""
    return x[tuple(slice(0, 1) if step == 0 else slice(None) for step in x.strides)]


def masked(x: np.ndarray) -> np.ndarray | None:
    """Which numbers are masks rather than values: not finite, or far above all others; None: none is."""
    with np.errstate(all="ignore"):
        size = np.abs(x)
        if not size.size or size.max() < MASK:
            return None
        finite = np.sort(size[np.isfinite(size)], axis=None)
        far = np.nonzero((finite[1:] >= MASK) & (finite[1:] > GAP * np.maximum(finite[:-1], 1.0)))[0]
        found = ~(size < finite[far[0] + 1]) if far.size else ~np.isfinite(size)
    return found if found.any() else None


def fingerprint(x: np.ndarray) -> tuple[np.ndarray | None, float | None]:
    """Numbers that say what an array holds, whatever its layout and its repetitions.

    Returns:
        (1, fraction of masks, minimum, maximum and moments), each times the scale, so that two can be
        compared by `close`; and None. For an array of one repeated number: None and the number. For
        what is empty or not numeric: None and None.
    """
    if x.dtype.kind not in "fciub" or not x.size:
        return None, None
    if x.dtype.kind == "c":
        x = np.stack([np.real(x), np.imag(x), 0.7 * np.real(x) + 0.3 * np.imag(x)])
    x = unrepeated(x).astype(np.float64, copy=False).ravel()
    masks = masked(x)
    part = 0.0
    if masks is not None:
        part = float(masks.mean())
        kept = x[~masks]
        if not kept.size:
            return None, float(x[0])
        if not kept.any():  # an additive mask: what it masks counts, not with which number
            return fingerprint(masks.astype(np.float64))
        x = kept
    low, high = float(x.min()), float(x.max())
    scale = max(abs(low), abs(high))
    if masks is None and high - low <= 1e-12 * scale:
        return None, float(x[0])
    sums = np.zeros(5)
    for start in range(0, x.size, CHUNK):
        y = x[start : start + CHUNK] / scale
        square = y * y
        sums += y.sum(), np.abs(y).sum(), square.sum(), square @ y, square @ square
    return scale * np.array([1, part, low / scale, high / scale, *(sums / x.size)]), None


def close(a: np.ndarray, b: np.ndarray, tolerance: float = EXACT) -> bool:
    """Whether two fingerprints are of the same numbers."""
    return bool(np.all(np.abs(a - b) <= tolerance * max(a[0], b[0])))


def as_numbers(x: np.ndarray) -> np.ndarray:
    """Float64 or complex, with masks as three times the largest other number."""
    x = np.asarray(x)
    x = x.astype(np.complex128 if x.dtype.kind == "c" else np.float64, copy=False)
    masks = masked(x.ravel())
    if masks is None:
        return x
    masks, x = masks.reshape(x.shape), x.copy()
    top = np.abs(x[~masks]).max(initial=1.0)
    with np.errstate(invalid="ignore"):
        x[masks] = np.where(np.isnan(x[masks]), 5 * top, np.sign(np.real(x[masks])) * 3 * top)
    return x


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference of two arrays of one shape, relative to the largest number."""
    a, b = as_numbers(a), as_numbers(b)
    scale = max(np.abs(a).max(initial=0.0), np.abs(b).max(initial=0.0))
    return float(np.abs(a - b).max(initial=0.0) / scale) if scale else 0.0


def permutations(shape: tuple[int, ...], other: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Orders of axes that take a shape to another, likeliest first: unchanged, channels last, first."""
    n = len(shape)
    if n != len(other) or n > 7 or sorted(shape) != sorted(other):
        return
    likely = [tuple(range(n)), (0, *range(2, n), 1), (0, n - 1, *range(1, n - 1)), (*range(1, n), 0)]
    seen = set()
    for order in (*(p for p in likely if sorted(p) == list(range(n))), *itertools.permutations(range(n))):
        if order not in seen and tuple(shape[i] for i in order) == other:
            seen.add(order)
            yield order


def merges(shape: tuple[int, ...], coarse: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Orders of axes after which neighbours merge to a coarser shape, those of a group in their old order."""
    for order in itertools.permutations(range(len(shape))) if len(shape) <= 7 else ():
        at, fits = 0, True
        for size in coarse:
            group, product = [], 1
            while product < size and at < len(order):
                product *= shape[order[at]]
                group.append(order[at])
                at += 1
            if product != size or group != sorted(group):
                fits = False
                break
        if fits and at == len(order):
            yield order


def same_order(a: np.ndarray, b: np.ndarray, tolerance: float = EXACT) -> tuple[int, ...] | None:
    """The order of ``a``'s axes, those of size one dropped, in which it equals ``b``; None: there is none."""
    a, b = np.squeeze(as_numbers(a)), np.squeeze(as_numbers(b))
    if a.size != b.size:
        return None
    return next((p for p in permutations(a.shape, b.shape) if _equal(a.transpose(p), b, tolerance)), None)


def same_merged(a: np.ndarray, b: np.ndarray, tolerance: float = EXACT) -> bool:
    """Whether one equals the other with axes moved and neighbours merged, such as batch and heads."""
    a, b = np.squeeze(as_numbers(a)), np.squeeze(as_numbers(b))
    if a.size != b.size:
        return False
    if a.ndim == b.ndim:  # each may merge what the other keeps apart: split one axis first
        return any(same_merged(fine, b, tolerance) for fine in _split(a, b.shape)) if a.ndim > 1 else False
    fine, coarse = (a, b) if a.ndim > b.ndim else (b, a)
    return any(
        _equal(fine.transpose(p).reshape(coarse.shape), coarse, tolerance)
        for p in merges(fine.shape, coarse.shape)
    )


def _split(a: np.ndarray, other: tuple[int, ...]) -> Iterator[np.ndarray]:
    for axis, size in enumerate(a.shape):
        if size in other:
            continue
        for part in {math.gcd(size, n) for n in other} - {1, size}:
            for pair in ((part, size // part), (size // part, part)):
                yield a.reshape(*a.shape[:axis], *pair, *a.shape[axis + 1 :])


def _equal(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    """Whether arrays of one shape are equal; a few numbers decide most cases."""
    few = tuple(slice(None, None, max(1, n // 4)) for n in b.shape)
    scale = tolerance * max(np.abs(b).max(initial=0.0), np.abs(a).max(initial=0.0), 1e-300)
    return all(np.abs(x - y).max(initial=0.0) <= scale for x, y in ((a[few], b[few]), (a, b)))


def shrink(x: np.ndarray) -> np.ndarray:
    """Without axes of size one, and without repetition along an axis or in its parts (repeat, tile)."""
    x = np.asarray(x)
    for axis in reversed(range(x.ndim)):
        size = x.shape[axis]
        first = x.take([0], axis)
        if size == 1 or np.array_equal(np.broadcast_to(first, x.shape), x, equal_nan=x.dtype.kind in "fc"):
            x = first.squeeze(axis)
            continue
        for times in (n for n in range(size // 2, 1, -1) if size % n == 0):
            for shape, inner in (((size // times, times), axis + 1), ((times, size // times), axis)):
                parts = x.reshape(*x.shape[:axis], *shape, *x.shape[axis + 1 :])
                first = parts.take([0], inner)
                if np.array_equal(np.broadcast_to(first, parts.shape), parts):
                    x = first.squeeze(inner)
                    break
            else:
                continue
            break
    return x


def squeeze_ids(ids: np.ndarray) -> np.ndarray:
    """Numbers of weights without axes of size one and without repetition along an axis, also as a tile."""
    for axis in reversed(range(ids.ndim)):
        size = ids.shape[axis]
        for period in (n for n in range(1, size + 1) if size % n == 0):
            first = ids.take(range(period), axis)
            if np.array_equal(np.concatenate([first] * (size // period), axis), ids):
                ids = first.squeeze(axis) if period == 1 else first
                break
    return ids


def arranged_alike(a: np.ndarray, b: np.ndarray, tolerance: float = 2 * NEAR) -> bool:
    """Whether two arrays of the same numbers have them in the same order, but for axes moved or merged."""
    if a.size != b.size:
        a, b = shrink(a), shrink(b)
    return same_order(a, b, tolerance) is not None or same_merged(a, b, tolerance)


def fit_to(a: np.ndarray, b: np.ndarray, tolerance: float) -> np.ndarray | None:
    """``a`` arranged and repeated as ``b`` is, if the two are equal within a tolerance."""
    if a.size == b.size:
        order = same_order(a, b, tolerance)
        if order is not None:
            return np.squeeze(a).transpose(order).reshape(b.shape)
        for order in merges(np.squeeze(a).shape, np.squeeze(b).shape) if a.ndim > b.ndim else ():
            moved = np.squeeze(a).transpose(order).reshape(b.shape)
            if distance(moved, b) <= tolerance:
                return moved
    small = _once(b)
    for core in (np.squeeze(_once(a)), np.squeeze(shrink(a))):
        order = same_order(core, small, tolerance)
        if order is not None:
            return np.broadcast_to(core.transpose(order).reshape(small.shape), b.shape)
    return None


def _once(x: np.ndarray) -> np.ndarray:
    """An array with one place along each axis on which it repeats."""
    same = [np.array_equal(np.broadcast_to(x.take([0], axis), x.shape), x) for axis in range(x.ndim)]
    return x[tuple(slice(0, 1) if repeats else slice(None) for repeats in same)]
