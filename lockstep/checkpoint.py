"""Compare the given weights with those that the binding asks for."""

import itertools

import numpy as np

from lockstep.result import Difference, Place
from lockstep.trace import Binding, Trace
from lockstep.values import NEAR, distance, permutations

FLIPS = 3  # axes that are flipped at most


def compare_given(reference: Trace, port: Trace, binding: Binding) -> list[Difference]:
    """The port's given weights against the reference's, leaf by leaf."""
    found = []
    for leaf in port.leaves:
        ids = binding.numbers[leaf.start : leaf.stop]
        bound = ids >= 0
        if not bound.any():
            continue
        mine = port.given[leaf.start : leaf.stop]
        want = np.where(bound, reference.given[ids], mine)
        far = distance(mine, want)
        if far <= NEAR:
            continue
        names = sorted({reference.leaf(int(i)).name for i in ids[bound][:: max(1, bound.sum() // 64)]})
        words = f"{leaf.name} is not what {' and '.join(names)} ask for: it differs by {far:.1e}"
        cause = _explain(reference, leaf.name, mine.reshape(leaf.shape), want.reshape(leaf.shape), names)
        place = Place("parameter", leaf.name, leaf.shape)
        theirs = Place("parameter", names[0], reference.leaf(int(ids[bound][0])).shape)
        found.append(Difference("weights", words, theirs, place, [], cause))
    return found


def _explain(reference: Trace, name: str, mine: np.ndarray, want: np.ndarray, names: list[str]) -> str:
    """A mistake of conversion that gives the port's numbers; empty if none does."""
    for count in range(1, min(FLIPS, mine.ndim) + 1):
        for axes in itertools.combinations(range(mine.ndim), count):
            if distance(np.flip(mine, axes), want) <= NEAR:
                return f"{name} is flipped along its axes {axes}"
    for order in permutations(mine.shape, want.shape):
        if order != tuple(range(mine.ndim)) and distance(mine.transpose(order), want) <= NEAR:
            return f"{name} was copied without transposing it: it is equal with its axes in the order {order}"
    if mine.ndim == 2 and mine.shape[0] != mine.shape[1] and distance(mine.reshape(mine.shape[::-1]).T, want) <= NEAR:
        return f"{name} was reshaped where it must be transposed"
    for other, numbers in reference.summed.items():
        if numbers.size == mine.size and distance(mine.ravel(), numbers.ravel()) <= NEAR:
            return f"{name} has {other} alone; the reference adds two biases"
    for leaf in reference.leaves:
        numbers = reference.given[leaf.start : leaf.stop].reshape(leaf.shape)
        if leaf.name not in names and numbers.size == mine.size and np.ptp(numbers.real):
            for order in permutations(tuple(n for n in leaf.shape if n > 1), tuple(n for n in mine.shape if n > 1)):
                if distance(np.squeeze(numbers).transpose(order), np.squeeze(mine)) <= NEAR:
                    return f"{name} has the reference's {leaf.name}"
    for word, bits in (("bfloat16", 8), ("float16", 11)):
        with np.errstate(all="ignore"):
            scale = 2.0 ** (np.floor(np.log2(np.abs(want))) - bits + 1)
            rounded = np.where(want == 0, 0, np.round(want / scale) * scale)
        if np.allclose(rounded, mine, rtol=1e-7, atol=0):
            return f"{name} was rounded to {word}"
    part = [i for i in range(want.shape[-1])] if want.ndim else []
    for axis in range(mine.ndim):
        groups = _shared_slices(mine, want, axis)
        if groups:
            return f"{name} has its parts along axis {axis} in another order"
    ratio = mine.ravel() @ want.ravel() / (want.ravel() @ want.ravel()) if part and want.any() else 0
    if ratio and distance(mine, ratio * want) <= NEAR:
        return f"{name} is {ratio:.6g} times as large"
    return ""


def _shared_slices(mine: np.ndarray, want: np.ndarray, axis: int) -> bool:
    """Whether both have the same slices along an axis, in another order."""
    a, b = (np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1) for x in (mine, want))
    if a.shape[1] < 2 and a.shape[0] > 1:
        return bool(distance(np.sort(a, 0), np.sort(b, 0)) <= NEAR)
    first = [int(np.abs(b - row).max(1).argmin()) for row in a]
    return sorted(first) == list(range(len(first))) and distance(a, b[first]) <= NEAR
