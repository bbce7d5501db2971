"""Match the values of two traces, and find where they part."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from lockstep.trace import Node, Trace
from lockstep.values import EXACT, arranged_alike

TRIED = 40  # matches whose arrangement is compared


@dataclass
class Region:
    """What differs on one side.

    Attributes:
        nodes: the unmatched values that the differing outputs depend on.
        entries: those of them whose operands all match, in order; what no weight or input decides comes last.
    """

    nodes: set[int]
    entries: list[int]


class Alignment:
    """Which values of the reference the port has too.

    A value is matched if the other side has one with the same fingerprint, and the numbers are arranged
    alike, but for axes moved or merged. Arrangements are compared only where that is asked.
    """

    def __init__(self, reference: Trace, port: Trace, tolerance: float = EXACT):
        self.reference, self.port = reference, port
        self.matches: dict[bool, dict[int, list[int]]] = {
            True: _match(port, reference, tolerance),
            False: _match(reference, port, tolerance),
        }
        self.known: dict[tuple[bool, int], bool] = {}
        self.scalars = {side: _scalars(trace) for side, trace in ((True, port), (False, reference))}

    def trace(self, port: bool) -> Trace:
        """The trace of a side."""
        return self.port if port else self.reference

    def partners(self, port: bool, node: int) -> Iterator[int]:
        """Nodes of the other side with the same numbers, arranged alike."""
        mine, theirs = self.trace(port).values.get(node), self.trace(not port).values
        for other in self.matches[port].get(node, ())[:TRIED]:
            if mine is None or other not in theirs or arranged_alike(mine, theirs[other]):
                yield other

    def is_matched(self, port: bool, node: int) -> bool:
        """Whether the other side has the value; leaves and inputs count as matched."""
        key = (port, node)
        if key not in self.known:
            self.known[key] = self._is_matched(port, self.trace(port).nodes[node])
        return self.known[key]

    def _is_matched(self, port: bool, node: Node) -> bool:
        if node.kind in ("parameter", "input", "constant") or node.image:
            return True
        if node.scalar is not None:
            if not node.data or node.scalar in (0.0, 1.0) or not np.isfinite(node.scalar):
                return True
            there = self.scalars[not port]
            return bool(there.size and np.abs(there - node.scalar).min() <= EXACT * abs(node.scalar))
        if node.fingerprint is None:
            return True
        return next(self.partners(port, node.id), None) is not None

    def region(self, port: bool, outputs: Iterable[int]) -> Region:
        """The unmatched values behind outputs that are known to differ."""
        nodes = self.trace(port).nodes
        found, todo = set(), [o for o in outputs if not self.is_matched(port, o)]
        while todo:
            node = todo.pop()
            if node not in found:
                found.add(node)
                todo += [i for i in nodes[node].inputs if i not in found and not self.is_matched(port, i)]
        starts = [n for n in found if all(self.is_matched(port, i) for i in nodes[n].inputs)]
        return Region(found, sorted(starts, key=lambda n: (not nodes[n].weighted, n)))

    def unmatched(self, port: bool) -> int:
        """How many values of a side have no match, by their fingerprints alone."""
        matches = self.matches[port]
        return sum(
            n.fingerprint is not None and not matches.get(n.id) and not n.image
            for n in self.trace(port).nodes
        )


def behind_moves(nodes: list[Node], node: int | None) -> list[int]:
    """A value, and those that it only is a rearrangement of."""
    found = [node] if node is not None else []
    while found and nodes[found[-1]].kind == "structure" and len(nodes[found[-1]].inputs) == 1:
        found += nodes[found[-1]].inputs
    return found


def ways_out(nodes: list[Node], region: set[int], start: int) -> list[int]:
    """The values that every path from a start to the end of a region passes, in order, the start first.

    These are its post-dominators: once one of them is right, all that follows from the start is right.
    """
    order = sorted(region, reverse=True)
    users: dict[int, list[int]] = {n: [] for n in region}
    for n in order:
        for i in set(nodes[n].inputs) & region:
            users[i].append(n)
    above: dict[int, int | None] = {}
    depth: dict[int | None, int] = {None: 0}
    for n in order:
        meet: int | None = users[n][0] if users[n] else None
        for other in users[n][1:]:
            meet = _meet(meet, other, above, depth)
        above[n], depth[n] = meet, depth[meet] + 1
    found, node = [], start if start in region else None
    while node is not None:
        found.append(node)
        node = above[node]
    return found


def _meet(a: int | None, b: int | None, above: dict, depth: dict) -> int | None:
    while a != b:
        if depth[a] >= depth[b]:
            a = above[a] if a is not None else None
        else:
            b = above[b] if b is not None else None
    return a


def ancestors(nodes: list[Node], *ends: int) -> set[int]:
    """Nodes and all that they depend on."""
    found: set[int] = set()
    todo = list(ends)
    while todo:
        i = todo.pop()
        if i not in found:
            found.add(i)
            todo += nodes[i].inputs
    return found


def _scalars(trace: Trace) -> np.ndarray:
    return np.array([n.scalar for n in trace.nodes if n.scalar is not None and np.isfinite(n.scalar)])


def _match(trace: Trace, other: Trace, tolerance: float) -> dict[int, list[int]]:
    """For each node with a fingerprint the other side's nodes with the same one."""
    theirs = [n for n in other.nodes if n.fingerprint is not None]
    if not theirs:
        return {}
    prints = np.stack([n.fingerprint for n in theirs if n.fingerprint is not None])
    order = np.argsort(prints[:, 0])
    scales = prints[order, 0]
    sizes = np.array([max(1, int(np.prod(n.shape))) for n in theirs])
    found = {}
    for node in trace.nodes:
        mine = node.fingerprint
        if mine is None:
            continue
        low, high = np.searchsorted(scales, [mine[0] * (1 - tolerance), mine[0] * (1 + tolerance)])
        near = order[low:high]
        if near.size:
            near = near[np.all(np.abs(prints[near] - mine) <= tolerance * mine[0], axis=1)]
            size = max(1, int(np.prod(node.shape)))
            near = near[np.maximum(sizes[near], size) % np.minimum(sizes[near], size) == 0]
        if near.size:
            found[node.id] = [theirs[i].id for i in near]
    return found
