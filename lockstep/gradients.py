"""Compare the gradients of the parameters, number by number through the binding."""

import ctypes
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from lockstep.result import Difference
from lockstep.trace import Gradients, Leaf, Trace
from lockstep.values import same_order

if TYPE_CHECKING:
    from lockstep.comparison import Comparison

SMALL = 1e-3  # a gradient that cancels to nothing is measured against this part of the largest
STATISTICS = ("running_mean", "running_var")


def cotangents(trace: Trace) -> dict[str, np.ndarray]:
    """Fixed random numbers in the shape of each output of floats, to multiply it with."""
    found = {}
    for index, (label, node) in enumerate(trace.outputs.items()):
        value = trace.values.get(node)
        if value is not None and value.dtype.kind in "fc":
            finite = np.isfinite(value)
            numbers = np.random.default_rng([index, *value.shape]).standard_normal(value.shape)
            found[label] = np.where(finite, numbers, 0.0)
    return found


def compare_gradients(comparison: "Comparison") -> None:
    """Add the first gradient that differs, with the weights as they were compared and as they were given."""
    reference, port, result = comparison.reference, comparison.port, comparison.result
    factors = cotangents(reference)
    theirs = _for_port(comparison, factors)
    compared: set[str] = set()

    def found(weights: np.ndarray, own: np.ndarray) -> bool:
        _return_memory()
        mine = comparison.models[0].gradients(weights, factors)
        _return_memory()
        other = comparison.models[1].gradients(own, theirs)
        _return_memory()
        far = _differences(comparison, mine, other, compared)
        if far:
            result.differences.append(_describe(comparison, mine, far, own, theirs))
        return bool(far)

    if not found(reference.weights, port.weights) and not np.array_equal(reference.weights, reference.given):
        # Constant weights hide faults, or show them.
        found(reference.given, comparison.binding.fill(reference.given, port.given))
    result.compared.append(f"gradients of {len(compared)} parameters")


def _return_memory() -> None:
    """Return freed memory to the system where glibc would keep it: a fifth of a large comparison's."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _for_port(comparison: "Comparison", factors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same cotangents as the port's outputs are arranged."""
    found = {}
    reference, port = comparison.reference, comparison.port
    labels = {node: label for label, node in port.outputs.items()}
    for label, t, j in comparison.pairs:
        a, b = reference.values.get(t), port.values.get(j)
        order = same_order(a, b, 1e-6) if a is not None and b is not None else None
        if label in factors and b is not None:
            moved = np.squeeze(factors[label])
            found[labels[j]] = (moved.transpose(order) if order else moved).reshape(b.shape)
    return found


def _differences(
    comparison: "Comparison", mine: Gradients, other: Gradients, compared: set[str]
) -> list[tuple[Leaf, float, str, np.ndarray]]:
    """The reference's parameters whose gradients differ: how far, how in words, and which numbers."""
    reference, numbers = comparison.reference, comparison.binding.numbers
    tolerance = comparison.tolerance
    size = reference.weights.size
    given, total = other.weights, np.zeros(size, other.weights.dtype)
    count, trained = np.zeros(size, np.int32), np.zeros(size, bool)
    trains = np.repeat([x.trainable for x in reference.leaves], [x.stop - x.start for x in reference.leaves])
    for leaf in comparison.port.leaves:
        part = slice(leaf.start, leaf.stop)
        if not leaf.trainable:
            # A plain array counts where the reference has a parameter: nothing says what the port does.
            given[part][~comparison.binding.fill(trains, False, part)] = np.nan
        bound = numbers[part] >= 0
        ids, own = numbers[part][bound], given[part][bound]
        np.add.at(total, ids, np.where(np.isnan(own), 0, own))
        np.add.at(count, ids, 1)
        trained[ids[~np.isnan(own)]] = True
    largest = float(np.nanmax(np.abs(mine.weights), initial=0.0))
    found = []
    for leaf in reference.leaves:
        part = slice(leaf.start, leaf.stop)
        used = count[part] > 0
        if not used.any() or leaf.constant or leaf.name.endswith(STATISTICS):
            continue
        frozen = not leaf.trainable
        want = np.where(np.isnan(mine.weights[part]), 0, mine.weights[part])
        compared.add(leaf.name)
        scale = max(float(np.abs(want).max()), float(np.abs(total[part]).max()), SMALL * largest)
        far = float(np.abs(want - total[part])[used].max()) / scale if scale else 0.0
        if far > tolerance:
            words = ""
            if frozen:
                words = "the reference does not train it (requires_grad is False), the port does"
            elif not trained[part][used].any():
                words = "the port does not train it"
            found.append(
                (leaf, far, words, np.flatnonzero(np.abs(want - total[part]) * used > tolerance * scale))
            )
        elif (count[part] > 1).any() and (shared := _parted(comparison, leaf, given, want, scale)):
            found.append((leaf, 1.0, shared, np.zeros(0, int)))
    return found


def _parted(comparison: "Comparison", leaf: Leaf, given: np.ndarray, want: np.ndarray, scale: float) -> str:
    """In words, if what the reference shares are several parameters of the port."""
    numbers, names = comparison.binding.numbers, []
    for mine in comparison.port.leaves:
        ids = numbers[mine.start : mine.stop]
        part = given[mine.start : mine.stop]
        inside = (ids >= leaf.start) & (ids < leaf.stop)
        if not inside.any() or np.isnan(part).any():
            continue
        if np.abs(part[inside] - want[ids[inside] - leaf.start]).max() > comparison.tolerance * scale:
            names.append(mine.name)
    return (
        f"the reference shares it; the port has separate parameters: {', '.join(names)}"
        if len(names) > 1
        else ""
    )


def _describe(
    comparison: "Comparison",
    mine: Gradients,
    far: list[tuple[Leaf, float, str, np.ndarray]],
    weights: np.ndarray,
    factors: Mapping[str, np.ndarray],
) -> Difference:
    """The difference nearest to the outputs: its gradient is the first wrong one on the way back."""
    reference, port = comparison.reference, comparison.port
    used = {s.name: s.node for s in reference.sites}
    leaf, distance, words, numbers = max(far, key=lambda item: (bool(item[2]), used.get(item[0].name, -1)))
    here = [
        s for s in port.sites if s.ids.size and _holds(int(comparison.binding.numbers[s.ids.flat[0]]), leaf)
    ]
    place = comparison.place(reference, reference.nodes[used[leaf.name]]) if leaf.name in used else None
    other = comparison.place(port, port.nodes[here[-1].node]) if here else None
    cause = words or _padding(comparison, leaf, numbers)
    if not cause:
        for name in ("stop_gradient", "maximum"):
            again = comparison.models[1].gradients(weights, factors, name)
            if not _differences(comparison, mine, again, set()):
                node = next((n for n in reversed(port.nodes) if _is_patched(n, name)), None)
                if node is not None:
                    other = comparison.place(port, node)
                cause = {
                    "stop_gradient": "equal without the port's stop_gradient",
                    "maximum": "jnp.maximum or jnp.minimum gives half of the gradient to each side of a tie; "
                    "equal if the reference's convention is used, as jax.nn.relu does",
                }[name]
                break
    names = ", ".join(item[0].name for item in far[:3]) + (" and others" if len(far) > 3 else "")
    kind = "parameter" if "separate parameters" in words or "train" in words else "gradient"
    return Difference(kind, f"the gradient of {names} differs by {distance:.1e}", place, other, [], cause)


def _is_patched(node: Any, name: str) -> bool:
    if name == "stop_gradient":
        return node.op == "stop_gradient" and bool(node.sources)
    return node.op in ("max", "min") and not node.params.get("within", "").startswith("relu")


def _holds(number: int, leaf: Leaf) -> bool:
    return leaf.start <= number < leaf.stop


def _padding(comparison: "Comparison", leaf: Leaf, numbers: np.ndarray) -> str:
    """The row of an embedding that the reference never trains, if nothing else differs."""
    row = comparison.reference.padding.get(leaf.name)
    if row is None or set(numbers // leaf.shape[-1]) != {row}:
        return ""
    return f"padding_idx={row}: the reference's embedding gives row {row} no gradient, the port's does"
