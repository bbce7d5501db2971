"""Where two models part: the first operations that differ on equal operands, and where to go on."""

import itertools
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from lockstep.align import Alignment, Region, ancestors, behind_moves, ways_out
from lockstep.bind import ROLES
from lockstep.trace import Node, Trace
from lockstep.values import EXACT, NEAR, as_numbers, fingerprint, permutations, same_order, shrink

if TYPE_CHECKING:
    from lockstep.comparison import Comparison

STARTS, LENGTH, TRIALS = 3, 16, 8  # entries tried, ways out of each, and runs of the port a difference
FIRST = 2  # of them: the next operands of bound weights
DEEP, WINDOW = 6, 24  # right operations that are enough; operations that are looked at
UNUSUAL = 0.3  # how much more alike two values must be in an order in which several axes are moved
SAMPLE = 4096  # numbers that decide how alike two arrays are


@dataclass
class Finding:
    """One difference.

    Attributes:
        kind: as in `result.KINDS`.
        reference: the node of the reference that differs first; None: it has none.
        port: the node of the port.
        words: what else is to be said.
        before: pairs of nodes that are equal before.
        replace: the reference's value for a node of the port with which to go on; empty: there is none.
        repaired: the pair of nodes whose replacement repairs the rest.
        cause: in words.
    """

    kind: str
    reference: int | None
    port: int | None
    words: str = ""
    before: list[tuple[int, int]] = field(default_factory=list)
    replace: dict[int, np.ndarray] = field(default_factory=dict)
    repaired: tuple[int, int] | None = None
    cause: str = ""


def locate(comparison: "Comparison", outputs: list[tuple[int, int]]) -> Finding:
    """The first difference behind outputs that differ."""
    reference, port = comparison.reference, comparison.port
    alignment = Alignment(reference, port)
    regions = (
        alignment.region(False, [t for t, _ in outputs]),
        alignment.region(True, [j for _, j in outputs]),
    )
    for index, (region, ends) in enumerate(zip(regions, zip(*outputs, strict=True), strict=True)):
        if not region.nodes:  # the output itself is a value that the other side has too
            regions[index].nodes.update(ends)
            regions[index].entries += sorted(ends)
    repaired, replace = _repair(comparison, alignment, regions, outputs)
    starts = []
    for trace, region, node in zip((reference, port), regions, repaired or (None, None), strict=True):
        behind = ancestors(trace.nodes, node) if node is not None else region.nodes
        mine = [e for e in region.entries if e in behind]
        if node is not None and node not in region.nodes:  # what takes a value as the other side does not
            mine = [e for e in region.entries if node in trace.nodes[e].inputs] or region.entries
        starts.append(mine[0] if mine else (node if node is not None else region.entries[0]))
    t, j = starts
    kind, words = _kind(alignment, regions, t, j)
    finding = Finding(kind, t, j, words, _before(alignment, t, j), replace, repaired)
    from lockstep.causes import find_cause

    find_cause(comparison, alignment, regions, finding, {j: t for t, j in outputs})
    return finding


def _repair(
    comparison: "Comparison",
    alignment: Alignment,
    regions: tuple[Region, Region],
    outputs: list[tuple[int, int]],
) -> tuple[tuple[int, int] | None, dict[int, np.ndarray]]:
    """The pair of nodes with which most values match again, once the port has the reference's."""
    reference, port = comparison.reference, comparison.port
    for t, j in outputs:
        if is_multiple(reference.values.get(t), port.values.get(j)):
            return None, {j: np.reshape(reference.values[t], port.values[j].shape)}
    model, wrong = (
        comparison.models[1],
        [n for n in sorted(regions[1].nodes) if port.nodes[n].fingerprint is not None],
    )
    theirs = {id_: reference.nodes[id_].fingerprint for id_ in regions[0].nodes}
    goals = np.stack([f for f in theirs.values() if f is not None] or [np.full(9, np.nan)])
    best: tuple[float, tuple[int, int] | None, dict[int, np.ndarray]] = (0, None, {})
    pairs = _uses(reference, port, comparison.binding.sites).items()
    bound = {
        pair
        for mine, theirs in pairs
        for pair in itertools.product(
            behind_moves(reference.nodes, reference.sites[theirs].operand),
            behind_moves(port.nodes, port.sites[mine].operand),
        )
    }
    for t, j, value in _candidates(reference, port, regions, bound, outputs, _orders(alignment, regions[1])):
        values = model.replay(port, {j: value})
        known = {n: port.nodes[n].fingerprint for n in values if alignment.matches[True].get(n)}
        outside = [n for n in known if n not in regions[1].nodes]
        if any((print_ := known[n]) is not None and not _is_in(values[n], print_[None]) for n in outside):
            continue  # it changes what is right, such as the outputs where only the statistics differ
        own, _ = fingerprint(value)  # what only repeats it is no evidence, as its maximum with zero
        right = sum(
            _is_in(values[n], goals) and not (own is not None and _is_in(values[n], own[None]))
            for n in wrong
            if n in values and n != j
        )
        ends = all(_same(values.get(o), reference.values.get(e)) for e, o in outputs if o > j)
        score = right + (len(wrong) if ends else 0)
        if depth := _mended(port.nodes, j, regions[1].nodes, values, goals):
            score = 3 * (depth + 1) * len(port.nodes) - j  # the first of the best: later ones hide faults
        if score > best[0]:
            best = score, (t, j), {j: value}
    if best[1] is None:  # a difference of the last operation: only the output itself can be put in
        for t, j in outputs:
            value = _fitted(reference.values.get(t), port.values.get(j))
            if value is not None:
                return None, {j: value[1]}
    return best[1], best[2]


def _uses(reference: Trace, port: Trace, bound: Mapping[int, int]) -> dict[int, int]:
    """The port's sites and the reference's that are the same use of a weight, each repetition too."""
    uses: list[dict[int, list[int]]] = []
    for trace in (reference, port):
        same: dict[tuple, list[int]] = {}
        for site in trace.sites:
            same.setdefault((site.role, site.ids.shape, site.ids.flat[0], site.ids.flat[-1]), []).append(
                site.order
            )
        uses.append({order: orders for orders in same.values() for order in orders})
    return {
        p: r for mine, theirs in bound.items() for p, r in zip(uses[1][mine], uses[0][theirs], strict=False)
    }


def _contracted(trace: Trace, region: set[int]) -> dict[int, set[int]]:
    """For each node of a region the contractions with weights that it is behind, within the region."""
    made = {site.node: site.order for site in trace.sites if site.role in ("contract", "conv")}
    found: dict[int, set[int]] = {}
    for n in sorted(region):
        found[n] = set().union(*(found.get(i, set()) for i in trace.nodes[n].inputs))
        found[n] |= {made[n]} if n in made else set()
    return found


def is_multiple(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    """Whether one number, such as a loss, is a simple fraction of another, as by another denominator."""
    if a is None or b is None or a.size != 1 or b.size != 1 or not b.any() or not np.isfinite([a, b]).all():
        return False
    ratio = float(np.real(a.item() / b.item()))
    fraction = Fraction(ratio).limit_denominator(1024)
    return 0 < fraction.numerator < 1024 and abs(ratio / float(fraction) - 1) < 1e-12


def _mended(nodes: list[Node], j: int, region: set[int], values: Mapping[int, np.ndarray], goals: Any) -> int:
    """How many operations behind a new value give the reference's before one does not, up to `DEEP`.

    One that does not is left out where all that follows from it does, as sums of squares in a variance.
    """
    same, right, wrong, direct = {j}, set(), [], False
    mine, _ = fingerprint(values[j]) if j in values else (None, None)
    goal = np.stack([mine if mine is not None else np.full(9, np.nan)])
    for n in sorted(i for i in region if i > j):
        taken = set(nodes[n].inputs)
        if not taken & {*same, *right, *wrong}:
            continue
        if taken & same and (
            nodes[n].kind == "structure" or nodes[n].op == "neg" or _is_in(values.get(n), goal)
        ):
            same.add(n)  # such as zero added: no evidence
            if any(i in region and nodes[i].weighted for i in taken - same - right):
                return 1  # right by chance: another operand still differs
        elif any(_is_in(s * values[n], goals) for s in (1, -1) if n in values):  # or with the other sign
            right.add(n)
            direct |= bool(taken & same)
            if taken & same and any(i in region and nodes[i].weighted for i in taken - same - right):
                return 1  # right by chance: another operand still differs
        else:
            wrong.append(n)
        if len(right) + len(wrong) >= WINDOW:
            break
    form: set[int] = set()
    for n in reversed(wrong):
        takers = [i for i in region if n in nodes[i].inputs]
        if takers and all(i in right or i in form for i in takers):
            form.add(n)
    first = next((n for n in wrong if n not in form), None)
    if not direct:
        return 0
    found = len(right) if first is None else sum(n < first for n in right)
    return min(found, DEEP)


def _is_in(value: np.ndarray | None, prints: np.ndarray) -> bool:
    """Whether a value has one of some fingerprints."""
    mine, _ = fingerprint(value) if value is not None else (None, None)
    return mine is not None and bool(np.all(np.abs(prints - mine) <= EXACT * mine[0], axis=1).any())


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is not None and b is not None and same_order(a, b, NEAR) is not None


def _candidates(
    reference: Trace,
    port: Trace,
    regions: tuple[Region, Region],
    bound: set[tuple[int, int]],
    outputs: list[tuple[int, int]],
    orders: Set[tuple[int, ...]],
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Pairs that may be the same value, the earliest and most alike first; operands of bound weights are."""
    ways = [
        [ways_out(trace.nodes, region.nodes, start)[:LENGTH] for start in region.entries[:STARTS]]
        for trace, region in zip((reference, port), regions, strict=True)
    ]
    for trace, region, some in zip((reference, port), regions, ways, strict=True):
        taken = dict.fromkeys(i for start in region.entries[:STARTS] for i in trace.nodes[start].inputs)
        some += [[i] for i in taken if not trace.nodes[i].image][:STARTS]  # an operation that one side lacks
    found: dict[tuple[int, int], tuple[float, np.ndarray]] = {}
    inside = [region.nodes for region in regions]
    last = [
        {i: n for n, pair in enumerate(outputs) for i in behind_moves(nodes, pair[side])}
        for side, nodes in enumerate((reference.nodes, port.nodes))
    ]
    passed = [
        _contracted(trace, region.nodes) for trace, region in zip((reference, port), regions, strict=True)
    ]
    known = _uses(reference, port, port.binding.sites) if port.binding else {}
    for mine in ways[0]:
        for theirs in ways[1]:
            for a, t in enumerate(mine):
                for b, j in enumerate(theirs):
                    if (t, j) in found or (t not in inside[0] and j not in inside[1]):
                        continue
                    both = passed[0].get(t, set()), {known.get(s) for s in passed[1].get(j, ())} - {None}
                    if both[0] - set(known.values()) == set() and both[0] != both[1]:
                        continue  # not behind the same weights
                    if last[0].get(t) != last[1].get(j):
                        continue  # not of the same output
                    if (reference.nodes[t].scalar is None) != (port.nodes[j].scalar is None):
                        continue  # one repeated number, such as a first state, and a value that is computed
                    fitted = _fitted(reference.values.get(t), port.values.get(j), orders)
                    if fitted is not None:
                        lacks = t not in inside[0] or j not in inside[1]
                        score = 0.3 * (a + b) + lacks - 6 * fitted[0] ** 4 - (2 if (t, j) in bound else 0)
                        found[t, j] = (score, fitted[1])
    order = sorted(found, key=lambda pair: found[pair][0])
    sure = [pair for pair in order if pair in bound][:TRIALS]
    for t, j in dict.fromkeys([*sorted(sure, key=sum)[:FIRST], *order[:TRIALS]]):
        yield t, j, found[t, j][1]


def _fitted(
    a: np.ndarray | None, b: np.ndarray | None, orders: Set[tuple[int, ...]] = frozenset()
) -> tuple[float, np.ndarray] | None:
    """How alike two values are, from 0 to 1, and the first arranged as the second; None: they do not fit.

    ``orders`` says how axes are arranged just before; without it, at most one axis is moved as a rule.
    """
    if a is None or b is None or a.dtype.kind not in "fc" or b.dtype.kind not in "fc":
        return None
    if a.size != b.size:
        small, other = np.squeeze(shrink(a)), np.squeeze(shrink(b))
        if small.size != other.size or small.size < 2:
            return None
        axes = [
            n
            for n in range(b.ndim)
            if b.shape[n] > 1 and not np.array_equal(b, np.broadcast_to(b.take([0], n), b.shape))
        ]
        shape = tuple(b.shape[n] if n in axes else 1 for n in range(b.ndim))
        fitted = _fitted(small, other, orders)
        if fitted is None or fitted[1].size != np.prod(shape):
            return None
        return fitted[0], np.broadcast_to(fitted[1].reshape(shape), b.shape)
    x, y = np.squeeze(a), np.squeeze(b)
    best: tuple[float, np.ndarray] | None = None
    for index, order in enumerate(permutations(x.shape, y.shape)):
        if index >= 24:
            break
        moved = x.transpose(order)
        usual = order in orders if any(len(one) == len(order) for one in orders) else _moves_one(order)
        alike = _alike(moved, y) - (0 if usual else UNUSUAL)
        if best is None or alike > best[0]:
            best = alike, moved
    return None if best is None else (best[0], best[1].reshape(b.shape))


def _orders(alignment: Alignment, region: Region) -> set[tuple[int, ...]]:
    """In which orders of axes the equal values lie that the port's first differing operations take."""
    reference, port, found = alignment.reference, alignment.port, set()
    for i in {i for start in region.entries[:STARTS] for i in port.nodes[start].inputs}:
        a, b = reference.values.get(next(alignment.partners(True, i), -1)), port.values.get(i)
        order = same_order(a, b, NEAR) if a is not None and b is not None and a.size == b.size else None
        found |= {tuple(order)} if order is not None else set()
    return found


def _moves_one(order: tuple[int, ...]) -> bool:
    """Whether at most one axis is moved, as when channels go last: the usual arrangement."""
    rests = [[a for a in order if a != axis] for axis in order]
    return not order or any(rest == sorted(rest) for rest in rests)


def _alike(a: np.ndarray, b: np.ndarray) -> float:
    """The correlation of two arrays of one shape."""
    step = tuple(slice(None, None, max(1, int(n / 16))) if a.size > SAMPLE else slice(None) for n in a.shape)
    x, y = np.real(as_numbers(a[step]).ravel()), np.real(as_numbers(b[step]).ravel())
    if x.size < 3:
        return 0.5
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return max(float(x @ y), 0.0) / size if size else 0.0


def _kind(alignment: Alignment, regions: tuple[Region, Region], t: int, j: int) -> tuple[str, str]:
    """What kind of difference it is, and words for it."""
    reference, port = alignment.reference.nodes, alignment.port.nodes
    narrow = [_narrow(nodes, region) for nodes, region in zip((reference, port), regions, strict=True)]
    if narrow[0] != narrow[1]:
        which = narrow[1] or narrow[0]
        side = "the port" if narrow[1] else "the reference"
        return "precision", f"{side} computes in {which}"
    near = {t, *reference[t].inputs}, {j, *port[j].inputs}
    moved = t in regions[0].nodes and near[1] & set(alignment.matches[False].get(t, ()))
    if moved or (j in regions[1].nodes and near[0] & set(alignment.matches[True].get(j, ()))):
        return "order", "the same numbers, arranged otherwise"
    words = _wiring(alignment, reference[t], port[j])
    return ("wiring", words) if words else ("values", "")


def _narrow(nodes: list[Node], region: Region) -> str:
    return next(
        (str(nodes[n].params["rounded"]) for n in sorted(region.nodes) if "rounded" in nodes[n].params), ""
    )


def _wiring(alignment: Alignment, mine: Node, theirs: Node) -> str:
    """Both operations are of one kind and have matched operands, but not each other's."""
    name = lambda op: ROLES.get(op, {"mm": "dot", "bmm": "dot", "dot_general": "dot"}.get(op, op))  # noqa: E731
    if name(mine.op.rstrip("_")) != name(theirs.op) or not mine.inputs:
        return ""
    values = lambda nodes, node: [i for i in node.inputs if not nodes[i].image]  # noqa: E731
    a, b = values(alignment.reference.nodes, mine), values(alignment.port.nodes, theirs)
    only = [i for i in a if not any(k in b for k in alignment.partners(False, i))]
    other = [i for i in b if not any(k in a for k in alignment.partners(True, i))]
    if len(a) != len(b) or not only or not other or alignment.reference.nodes[only[0]].scalar is not None:
        return ""
    if not alignment.matches[False].get(only[0]) or not alignment.matches[True].get(other[0]):
        return ""

    def say(nodes: list[Node], i: int) -> str:
        part = f" (part {nodes[i].params['part'] + 1})" if "part" in nodes[i].params else ""
        return f"{nodes[i].op}{part} {nodes[i].shape}{_at(nodes[i])}"

    return (
        f"the reference takes {say(alignment.reference.nodes, only[0])}, "
        f"the port {say(alignment.port.nodes, other[0])}"
    )


def _at(node: Node) -> str:
    from pathlib import PurePath

    return f" of {PurePath(node.sources[0][0]).name}:{node.sources[0][1]}" if node.sources else ""


def _before(alignment: Alignment, t: int, j: int) -> list[tuple[int, int]]:
    """Values that the differing operations take, and that are equal."""
    found: list[tuple[int, int]] = []
    for port, node in ((False, t), (True, j)):
        nodes: Any = alignment.trace(port).nodes
        for i in dict.fromkeys(nodes[node].inputs):
            if nodes[i].image or nodes[i].kind == "parameter" or nodes[i].fingerprint is None:
                continue
            partner = next(alignment.partners(port, i), None)
            pair = (partner, i) if port else (i, partner)
            if partner is not None and pair not in found:
                found.append(pair)  # type: ignore[arg-type]
    return found[:2]
