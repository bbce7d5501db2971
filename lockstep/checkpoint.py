"""Compare the given weights with those that the binding asks for."""

import itertools

import numpy as np

from lockstep.result import Difference, Place
from lockstep.trace import Binding, Trace
from lockstep.values import NEAR, distance, permutations

FLIPS = 3  # axes that are flipped at most


def compare_given(reference: Trace, port: Trace, binding: Binding) -> list[Difference]:
    """The port's given weights against the reference's; leaves with the same mistake are one difference."""
    found: dict[tuple, Difference] = {}
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
        alone = _alone(reference, names[0], ids, mine) if bound.all() else ""
        cause = alone or _explain(reference, mine.reshape(leaf.shape), want.reshape(leaf.shape), names)
        key = (leaf.name.rpartition("/")[2], tuple(names), cause)
        if cause and key in found:
            found[key].also += 1
            continue
        words = f"{leaf.name} is not what {' and '.join(names)} ask for: it differs by {far:.1e}"
        places = (
            Place("parameter", names[0], reference.leaf(int(ids[bound][0])).shape),
            Place("parameter", leaf.name, leaf.shape),
        )
        key = key if cause else (leaf.name,)
        found[key] = Difference("weights", words, *places, [], f"{leaf.name} {cause}" if cause else "")
    return list(found.values())


def _alone(reference: Trace, name: str, ids: np.ndarray, mine: np.ndarray) -> str:
    """One of two biases that the reference adds."""
    leaf = reference.leaf(int(ids[0]))
    for kind in ("bias_ih", "bias_hh"):
        other = name.replace("bias_hh", kind).replace("bias_ih", kind)
        if other in reference.summed and (ids < leaf.stop).all():
            numbers = reference.summed[other].ravel()[ids - leaf.start]
            if distance(mine, numbers) <= NEAR:
                return f"has {other} alone; the reference has two biases, which are added"
    return ""


def _explain(reference: Trace, mine: np.ndarray, want: np.ndarray, names: list[str]) -> str:
    """A mistake of conversion that gives the port's numbers; empty if none does."""
    for order in permutations(mine.shape, want.shape):
        for count in range(min(FLIPS, mine.ndim) + 1):
            for axes in itertools.combinations(range(mine.ndim), count):
                if distance(np.flip(mine.transpose(order), axes), want) <= NEAR:
                    words = [f"is flipped along its axes {axes}"] if axes else []
                    if order != tuple(range(mine.ndim)):
                        words.append(
                            f"is not transposed as it must be: it is right in the order of axes {order}"
                        )
                    return " and ".join(words)
    turned = mine.reshape(mine.shape[::-1]).T if mine.ndim == 2 else mine
    if turned.shape == want.shape and distance(turned, want) <= NEAR:
        return "was reshaped where it must be transposed"
    for leaf in reference.leaves:
        numbers = reference.given[leaf.start : leaf.stop].reshape(leaf.shape)
        if leaf.name in names or numbers.size != mine.size or not np.ptp(np.real(numbers)):
            continue
        small, other = (tuple(n for n in shape if n > 1) for shape in (leaf.shape, mine.shape))
        for order in permutations(small, other):
            if distance(np.squeeze(numbers).transpose(order), np.squeeze(mine)) <= NEAR:
                return f"has the reference's {leaf.name}"
    if words := _part(reference, mine, want, names):
        return words
    for word, bits in (("bfloat16", 8), ("float16", 11)):
        with np.errstate(all="ignore"):
            unit = 2.0 ** (np.floor(np.log2(np.abs(want))) - bits + 1)
            rounded = np.where(want == 0, 0, np.round(want / unit) * unit)
        if np.allclose(rounded, mine, rtol=1e-7, atol=0):
            return f"was rounded to {word}"
    for axis in range(mine.ndim):
        if _shared_slices(mine, want, axis):
            return f"has its parts along axis {axis} in another order"
    ratio = float(mine.ravel() @ want.ravel() / (want.ravel() @ want.ravel())) if want.any() else 0.0
    if ratio and distance(mine, ratio * want) <= NEAR:
        return f"is {ratio:.6g} times as large as it must be"
    return ""


def _part(reference: Trace, mine: np.ndarray, want: np.ndarray, names: list[str]) -> str:
    """Another third, or part, of a fused weight."""
    for name in names:
        leaf = next(leaf for leaf in reference.leaves if leaf.name == name)
        whole = reference.given[leaf.start : leaf.stop].reshape(leaf.shape)
        for axis in range(whole.ndim):
            for count in (2, 3, 4):
                if whole.size != count * mine.size or whole.shape[axis] % count:
                    continue
                for index, part in enumerate(np.split(whole, count, axis)):
                    a, b = np.sort(part, None), np.sort(mine, None)
                    if distance(a, b) <= NEAR and distance(a, np.sort(want, None)) > NEAR:
                        which = f"part {index + 1} of {count}"
                        if count == 3:
                            which += f", the projection of the {('query', 'key', 'value')[index]}"
                        return f"has another part of {name}: {which}"
    return ""


def _shared_slices(mine: np.ndarray, want: np.ndarray, axis: int) -> bool:
    """Whether both have the same slices along an axis, in another order."""
    a, b = (np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1) for x in (mine, want))
    if a.shape[1] < 2 and a.shape[0] > 1:
        return bool(distance(np.sort(a, 0), np.sort(b, 0)) <= NEAR)
    first = [int(np.abs(b - row).max(1).argmin()) for row in a]
    return sorted(first) == list(range(len(first))) and distance(a, b[first]) <= NEAR
