"""Try other bindings of weights before a difference is believed.

Weights that the same numbers meet, such as the halves of a gated layer, cannot be told apart where they are
used, and names or their order may mislead. That two of them are exchanged shows later. If exchanging such
pairs makes the outputs equal, and the names do not speak against it, the port is right.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from lockstep.align import Alignment, Region
from lockstep.bind import parts, similarity
from lockstep.trace import Binding, Site, Trace

if TYPE_CHECKING:
    from lockstep.comparison import Comparison

TRIALS = 32  # runs of the port
DEPTH = 2  # how many uses of weights before the first difference are likelier than all others
WORSE, BETTER = 0.05, 0.4  # how much less or more alike the names of two weights are after an exchange


@dataclass(frozen=True, eq=False)
class Slot:
    """Numbers of the port that are bound to as many of one leaf of the reference."""

    site: Site
    part: np.ndarray  # which of its columns
    mine: np.ndarray
    theirs: np.ndarray
    name: str  # of the port's leaf; in a stack with the number of the slice
    leaf: str  # of the reference

    @property
    def columns(self) -> list[tuple[int, int]]:
        """The reference's columns, see `Site.columns`."""
        return [self.site.columns[i] for i in self.part] if self.site.columns else []


def rebind(comparison: "Comparison", far: Callable[[], list[tuple[str, int, int, float]]]) -> bool:
    """Exchange weights behind the first difference, pair after pair, until nothing differs.

    Args:
        comparison: whose port's binding and trace are replaced, if that succeeds.
        far: the pairs of nodes that differ now.

    Returns:
        Whether nothing differs now; else all is as it was.
    """
    if comparison.replaced or comparison.rebound or comparison.models[1].everything:
        return False
    comparison.rebound = True
    before, trials, named = (comparison.port, comparison.exchanged), TRIALS, True
    while bad := far():
        port = comparison.port
        alignment = Alignment(comparison.reference, port)
        unmatched = alignment.unmatched(True)
        region = alignment.region(True, [j for _, _, j, _ in bad])
        for gain, exchanged in islice(_exchanged(comparison, alignment, region), trials):
            trials -= 1
            other = comparison.run_port(exchanged)
            left = Alignment(comparison.reference, other).unmatched(True)
            if left < unmatched or (left == unmatched and gain > BETTER):
                comparison.adopt(other, exchanged)
                named &= gain > BETTER
                break
        if comparison.port is port:  # no exchange helped
            comparison.adopt(*before)
            return False
    if not named and comparison.exchanged and comparison.exchanged.binding:
        found = sorted({f"{mine} is {theirs}" for mine, theirs, _ in comparison.exchanged.binding.names})
        comparison.result.notes.append(f"only the outputs tell which weight is which: {', '.join(found)}")
    return True


def _exchanged(
    comparison: "Comparison", alignment: Alignment, region: Region
) -> Iterator[tuple[float, Trace]]:
    """Each exchange by itself, then after the earlier ones: how much it improves the names, what is bound."""
    for gain, a, b in _exchanges(comparison, alignment, region):
        yield gain, _exchange(comparison.port, a, b, None)
        if comparison.exchanged:
            yield gain, _exchange(comparison.port, a, b, comparison.exchanged)


def _exchange(port: Trace, a: Slot, b: Slot, earlier: Trace | None) -> Trace:
    """A run that two slots are bound in as each other was, and earlier exchanges as they were."""
    assert port.binding
    numbers, sure = port.binding.numbers.copy(), np.zeros(port.weights.size, bool)
    sites, names = [replace(site, columns=[]) for site in port.sites], []
    if earlier and earlier.binding:
        sure |= earlier.binding.sure
        numbers[sure], names = earlier.binding.numbers[sure], list(earlier.binding.names)
        for site, other in zip(sites, earlier.sites, strict=True):
            site.columns = list(other.columns)
    for slot, other in ((a, b), (b, a)):
        numbers[slot.mine], sure[slot.mine] = other.theirs, True
        names.append((port.leaf(int(slot.mine.flat[0])).name, other.leaf, "by trial"))
        if other.columns:
            columns = sites[slot.site.order].columns or list(slot.site.columns)
            for i, column in zip(slot.part, other.columns, strict=True):
                columns[i] = column
            sites[slot.site.order].columns = columns
    orders, known = (a.site.order, b.site.order), port.binding.sites
    pairs = {}
    if orders[0] != orders[1]:  # parts of one site leave it where it is
        pairs = {mine: known[other] for mine, other in (orders, orders[::-1]) if other in known}
    return replace(port, sites=sites, binding=Binding(numbers, pairs, names, sure=sure))


def _exchanges(
    comparison: "Comparison", alignment: Alignment, region: Region
) -> Iterator[tuple[float, Slot, Slot]]:
    """Pairs of slots, the likeliest first: better by name, near the difference, with the same operand.

    A weight whose result is right may only be exchanged with one that has its operand, or is a part of the
    same leaf of the reference. Far from the difference the names must say it.

    Yields:
        How much more alike the names are after the exchange, and the two.
    """
    port, slots = comparison.port, _slots(comparison.reference, comparison.port, comparison.binding.numbers)
    right = {slot.site.order for slot in slots if alignment.is_matched(True, slot.site.node)}
    inside = {site.order for site in port.sites if site.node in region.nodes}
    ranked, seen = [], set()
    for depth, orders in enumerate([*_behind(port, region.entries[:1]), inside]):
        for a in (slot for slot in slots if slot.site.order in orders):
            for b in slots:
                pair = frozenset((id(a), id(b)))
                if pair in seen or a.site.role != b.site.role or a.mine.shape != b.mine.shape:
                    continue
                seen.add(pair)
                siblings = a.site.operand == b.site.operand or a.leaf == b.leaf
                gain = similarity(b.leaf, a.name) + similarity(a.leaf, b.name)
                gain -= similarity(a.leaf, a.name) + similarity(b.leaf, b.name)
                doubtful = siblings or not right & {a.site.order, b.site.order}
                if a is b or not doubtful or gain < (BETTER if depth == DEPTH else -WORSE):
                    continue
                ranked.append(
                    (gain < BETTER, depth, -gain, not siblings, abs(a.site.order - b.site.order), a, b)
                )
    ranked.sort(key=lambda item: item[:5])
    yield from ((-item[2], *item[5:]) for item in ranked)


def _behind(port: Trace, entries: list[int]) -> Iterator[set[int]]:
    """The sites that nodes come from: those without another site between, then those behind them."""
    made: dict[int, list[Site]] = {}
    for site in port.sites:
        if not _is_bias(port, site):
            made.setdefault(site.node, []).append(site)
    todo, seen = list(entries), set()
    for _ in range(DEPTH):
        orders, further = set(), []
        while todo:
            node = todo.pop()
            if node in seen:
                continue
            seen.add(node)
            orders |= {site.order for site in made.get(node, ())}
            (further if node in made else todo).extend(port.nodes[node].inputs)
        yield orders
        todo = further


def _slots(reference: Trace, port: Trace, numbers: np.ndarray) -> list[Slot]:
    """What may be exchanged: each use, of a stack each slice, of a fused weight each of its parts."""
    found: list[Slot] = []
    seen: set[tuple[int, int]] = set()
    for site in port.sites:
        key = int(site.ids.flat[0]), int(site.ids.flat[-1])
        name = port.leaf(key[0]).name
        statistics = parts(name)[1] in ("mean", "var")  # they follow their module
        if key in seen or statistics or (numbers[site.ids] < 0).any() or _is_bias(port, site):
            continue
        seen.add(key)
        slices = site.ids if site.role == "contract" else site.ids[None]
        for index, mine in enumerate(slices):
            label = f"{name}.{index}" if len(slices) > 1 else name
            theirs = numbers[mine]
            leaf = reference.leaf(int(theirs.flat[0])).name
            if site.role != "contract":
                found.append(Slot(site, np.arange(len(site.columns)), mine, theirs, label, leaf))
                continue
            leaves = [reference.leaf(int(n)).name for n in theirs[0]]
            cuts = [i for i in range(1, len(leaves)) if leaves[i] != leaves[i - 1]]
            for part in np.split(np.arange(len(leaves)), cuts):
                found.append(Slot(site, part, mine[:, part], theirs[:, part], label, leaves[part[0]]))
    return found


def _is_bias(port: Trace, site: Site) -> bool:
    """Whether it is added to a contraction's result: then it follows the contraction's weight."""
    return (
        site.role == "add" and site.operand is not None and port.nodes[site.operand].contraction is not None
    )
