"""Bind a port's weights to a reference's at their first use: by role, size, other operand, name and order.

There are no rules for layouts or classes of layers. Each number of each weight has a place of its own, so
a fused projection may be several there, a 1x1 convolution a linear layer, a stack of blocks a list of them.
A weight that is changed before it meets activations, as by a scale or a norm, is bound by a guess at first;
the contraction corrects it, and the port runs again with what its contractions say.
"""

import difflib
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np

from lockstep.align import ancestors
from lockstep.trace import Binding, Leaf, Node, Site, Trace
from lockstep.values import EXACT, NEAR, close, distance, fingerprint, permutations, same_order

ROLES = {"select_n": "where", "integer_pow": "pow", "square": "pow", "add_any": "add", "concatenate": "cat"}
EXCHANGEABLE = ({"mul", "div"}, {"add", "sub"})
WORDS = {"q": "query", "k": "key", "v": "value", "o": "out"}
WORDS |= {f"w{letter}": word for letter, word in WORDS.items()}
# A recurrent cell's weights of its input and of its state, with the gates apart or as one.
WORDS |= {side + gate: side for side in "ih" for gate in "ifgornzh"}
OWN = {"weight", "kernel", "scale", "embedding", "bias", "value", "mean", "var", "running"}
COLLECTIONS = {"params", "batch_stats", "cell"}
OPERAND, SIZE, ORDER, BEHIND = 4.0, 0.7, 0.03, 0.3  # what counts how much: an equal operand most
ROOT = 0.3  # the same outermost module
SAME, SURE = 1.0, 3.0  # the same module as a weight that is bound; as one that is by its equal operand
UPSTREAM, FEW = 2.0, 8  # of the sites that an operand comes from; how many are kept


@cache
def parts(name: str) -> tuple[tuple[str, ...], str]:
    """The words of a leaf's path, and its own name: ``layers.0.q.weight`` has (layers, 0, query), weight."""
    apart = re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
    apart = re.sub(r"(^|\.)(weight|bias)_(\w+)$", r"\1\3.\2", apart)  # PyTorch's weight_ih_l1 is of layer 1
    apart = re.sub(r"([ih]h)(?:_l0|_l(\d+))(_reverse)?\.", r"\2.\3.\1.", apart)
    words = [str(WORDS.get(word, word)) for word in re.findall(r"[a-z]+|\d+", apart)]
    module = len(words) == 1 and words[0] in ("value", "embedding")  # a projection's whole name
    own: str = words.pop() if words and words[-1] in OWN and not module else ""
    while words and (words[-1] in OWN - {"value", "embedding"}):
        words.pop()
    return tuple(w for w in words if w not in COLLECTIONS), own


@cache
def similarity(a: str, b: str) -> float:
    """How alike two leaves' names are, from 0 to about 3: the path, its last word and its numbers count."""
    (path, own), (other, theirs) = parts(a), parts(b)
    text = " ".join(path), " ".join(other)
    words = [[w for w in p if not w.isdigit()] for p in (path, other)]
    numbers = [[w for w in p if w.isdigit()] for p in (path, other)]
    score = difflib.SequenceMatcher(None, text[0], text[1]).ratio()
    if words[0] and words[1]:
        score += ROOT if words[0][0] == words[1][0] else 0.0
        alike = difflib.SequenceMatcher(None, " ".join(words[0]), " ".join(words[1])).ratio()
        score += 0.5 if numbers[0] and numbers[0] == numbers[1] and alike > 0.9 else 0.0
        last = [next((w for w in reversed(p) if w != "proj"), "") for p in words]
        score += 0.5 * difflib.SequenceMatcher(None, last[0], last[1]).ratio() + (
            0.5 if last[0] == last[1] else 0.0
        )
    statistics = {"mean", "var"}
    if own == theirs and own in statistics | {"bias"}:
        return score + 0.5
    return score - 0.5 if statistics & {own, theirs} else score


def _is_bias(name: str) -> bool | None:
    own = parts(name)[1]
    return own == "bias" if own else None


@dataclass
class _Slice(Site):
    """A use of a slice of a stack; ``prints`` are what the fingerprint of its operand may be."""

    prints: list[np.ndarray | None] = field(default_factory=list)


class Binder:
    """Binds while the port runs; ``port.weights`` is filled with the reference's numbers."""

    def __init__(self, reference: Trace, port: Trace, before: Trace | None = None):
        self.reference, self.port, self.before = reference, port, before
        self.numbers = np.full(port.weights.size, -1, np.int64)
        self.kept = np.zeros(port.weights.size, bool)  # keeps its own numbers
        self.taken = np.zeros((2, reference.weights.size), bool)  # by a guess or not, and for sure
        self.counts = [{leaf.start: 0 for leaf in reference.leaves} for _ in self.taken]  # of each leaf
        self.sure = False  # the use that is bound says in which order its numbers are
        self.result = Binding(self.numbers, sure=np.zeros(port.weights.size, bool))
        self.last = 0  # order of the reference's site that was bound last
        self.pairs: dict[tuple[tuple[str, ...], tuple[str, ...]], float] = {}  # paths bound before
        self.modules: set[tuple[tuple[str, ...], tuple[str, ...]]] = set()  # by parameters
        seen: set[tuple] = set()
        self.first: list[Site] = []  # the reference's sites, each use of the same numbers once
        for site in reference.sites:
            ends = int(site.ids.flat[0]), int(site.ids.flat[-1])
            key = (site.role, site.ids.shape, *ends, self._meets_data(site))
            if key not in seen:
                seen.add(key)
                self.first.append(site)
        self.upstream = {"reference": [], "port": []}
        self.row_prints: dict[tuple[int | None, int], list[np.ndarray]] = {}  # the reference's
        if before is None:
            self._bind_constants()
        else:
            self._keep_sure(before)

    def _keep_sure(self, before: Trace) -> None:
        """Begin with what no guess was in."""
        assert before.binding
        numbers, sure, port = before.binding.numbers, before.binding.sure, self.port
        leaves = {leaf.name: leaf for leaf in before.leaves}
        for name, theirs, why in before.binding.names:
            ids = np.arange(leaves[name].start, leaves[name].stop)
            ids = ids[sure[ids] & (self.numbers[ids] < 0)]
            if ids.size:
                self._take(ids, numbers[ids], theirs, why, True)
        self.port = before  # whose values are known
        for mine, theirs in before.binding.sites.items():
            if sure[before.sites[mine].ids].all():
                self._bound(before.sites[mine], self.reference.sites[theirs])
        self.port = port

    def _comes_from(self, side: str, node: int | None) -> frozenset[int]:
        """The sites whose results reach a node without passing another site."""
        trace = self.reference if side == "reference" else self.port
        known: list[frozenset[int]] = self.upstream[side]
        if node is None:
            return frozenset()
        if len(known) <= node:
            made = {s.node: s.order for s in trace.sites}
            for n in trace.nodes[len(known) : node + 1]:
                behind = sorted({s for i in n.inputs for s in known[i]})[-FEW:]
                known.append(frozenset([made[n.id]]) if n.id in made else frozenset(behind))
        return known[node]

    def _bind_constants(self) -> None:
        """A table that both models hold and nobody trains is bound by its numbers, rounded as they may be."""
        for mine in (leaf for leaf in self.port.leaves if not leaf.trainable):
            numbers = self.port.given[mine.start : mine.stop]
            print_, _ = fingerprint(numbers)
            for theirs in self.reference.leaves if print_ is not None else ():
                if theirs.stop - theirs.start != numbers.size or theirs.trainable:
                    continue
                table = self.reference.weights[theirs.start : theirs.stop]
                other, _ = fingerprint(table)
                if print_ is None or other is None or not close(print_, other, NEAR):
                    continue
                order = same_order(table.reshape(theirs.shape), numbers.reshape(mine.shape), NEAR)
                if order is not None:
                    ids = np.squeeze(np.arange(theirs.start, theirs.stop).reshape(theirs.shape)).transpose(
                        order
                    )
                    self._take(np.arange(mine.start, mine.stop), ids, theirs.name, "the same numbers", True)
                    break

    def bind(self, site: Site, columns: np.ndarray | None, sure: bool = False) -> bool:
        """Bind the numbers of a site of the port; whether any were bound now.

        Args:
            site: the use.
            columns: what its other operand waits for, see `Operand.columns`.
            sure: it is a contraction with activations; what was bound before by a guess is bound again.
        """
        ids, self.sure = site.ids, sure
        if self.before:
            site.columns = self.before.sites[site.order].columns
        if not ((self.numbers[ids] < 0) & ~self.kept[ids]).any():
            return sure and not self.result.sure[ids].any() and self._bind_use(site)
        if not (site.role in ("add", "sub") and self._bind_bias(site, columns)) and not self._bind_use(site):
            self._bind_leaf(site)
        return True

    def _bind_use(self, site: Site) -> bool:
        """Bind a site to one of the reference's; whether there is one."""
        ids = site.ids
        found = self._candidates(site)
        stack = ids.ndim > 1 and len(ids) > 1 and site.role not in ("conv", "image", "gather")
        if stack and not found and self._bind_stack(site):
            return True
        found = found or self._candidates(site, shared=True)
        if not found or not self._same_operand(site, found[0]):
            found = self._pieces(site) or found
        if found and site.role in ("contract", "gather") and ids.shape[0] == 1:
            return self._bind_columns(site, found)
        return bool(found) and self._bind_whole(site, found[0])

    def order(self, node: int, x: np.ndarray, axes: Sequence[int]) -> tuple[int, ...]:
        """The order in which a contraction takes several axes of a value: as the reference has them in one.

        If the reference has no such value, their own.
        """
        own, size = tuple(int(i) for i in np.argsort(axes)), math.prod(x.shape[a] for a in axes)
        orders = list(dict.fromkeys([own, *itertools.permutations(own)]))
        sums = [np.moveaxis(x, [axes[i] for i in o], range(len(o))).reshape(size, -1).sum(1) for o in orders]
        for site in self.reference.sites:
            y = self.reference.values.get(site.operand) if site.operand is not None else None
            if site.role != "contract" or y is None or site.ids.shape[1] != size:
                continue
            if not _same_value(self.port.nodes[node], self.reference.nodes[site.operand or 0]):
                continue
            for order, axis in itertools.product(range(len(orders)), range(y.ndim)):
                theirs = np.moveaxis(y, axis, 0).reshape(y.shape[axis], -1).sum(1)
                if theirs.size == size and distance(theirs, sums[order]) <= EXACT:
                    return orders[order]
        return own

    def finish(self) -> Binding:
        """What was bound; leaves that no operation used keep their numbers."""
        self._follow_modules()
        for leaf in self.port.leaves:
            if (self.numbers[leaf.start : leaf.stop] < 0).all():
                self.result.unbound.append(leaf.name)
        return self.result

    def _follow_modules(self) -> None:
        """Statistics belong to the module whose weights are bound."""
        for leaf in (leaf for leaf in self.port.leaves if not leaf.trainable):
            path, own = parts(leaf.name)
            for theirs in self.reference.leaves:
                other, name = parts(theirs.name)
                fits = theirs.stop - theirs.start == leaf.stop - leaf.start and not theirs.trainable
                if not own or name != own or not fits or (path, other) not in self.modules:
                    continue
                ids = np.arange(theirs.start, theirs.stop)
                if (self.numbers[leaf.start : leaf.stop] >= 0).all() and self.numbers[leaf.start] not in ids:
                    self._take(np.arange(leaf.start, leaf.stop), ids, theirs.name, "of the same module", True)

    # --- the ways to bind ---

    def _bind_bias(self, site: Site, columns: np.ndarray | None) -> bool:
        """A bias follows the columns of the contraction that it is added to."""
        if columns is None or site.operand is None:
            return False
        want = columns
        for axis in reversed(range(want.ndim)):
            if want.shape[axis] == 1 or (want == want.take([0], axis)).all():
                want = want.take(0, axis)
        order = next(permutations(want.shape, site.ids.shape), None)
        if want.size != site.ids.size or order is None or (want < 0).any():
            return False
        if want.shape != site.ids.shape or self.taken[1][want].all():
            return False
        self._take(site.ids, want, self._name(want), "follows its contraction", True)
        other = next((s for s in self.first if s.role == site.role and s.ids.flat[0] == want.flat[0]), None)
        if other is not None:
            self._bound(site, other)
            self.last = other.order + 1
        return True

    def _candidates(self, site: Site, shared: bool = False) -> list[Site]:
        """The reference's uses of weights that a use may be, best first; shared: of those that are bound."""
        port, reference = self.port, self.reference
        own = port.leaf(int(site.ids.flat[0]))
        stacked = own.stop - own.start > site.ids.size
        known = self.result.sites
        behind = {known[s] for s in self._comes_from("port", site.operand) if s in known}
        found = []
        for other in reference.sites if shared else self.first:
            theirs = reference.leaf(int(other.ids.flat[0]))
            if not _same_role(site.role, other.role) or not _fits(site, other):
                continue
            if other.role in ("contract", "conv", "image") and self._meets_data(other) != self.sure:
                continue
            if shared != self._is_taken(other, theirs):
                continue
            if theirs.constant and not own.trainable and not self._is_constant(own):
                continue  # the port has a table of its own, which is compared, not overwritten
            score = 2 * similarity(other.name, site.name) - ORDER * min(abs(other.order - self.last), 60)
            score -= BEHIND if other.order < self.last else 0.0
            score += SIZE if other.ids.size == site.ids.size else 0.0
            paths = parts(site.name)[0], parts(other.name)[0]
            alike = self.pairs.get((paths[0], _unnumbered(paths[1])), 0.0) if stacked else 0.0
            score += max(self.pairs.get(paths, 0.0), alike)
            if self._same_operand(site, other):
                score += OPERAND
            elif shared or {_is_bias(site.name), _is_bias(other.name)} == {True, False}:
                continue
            elif behind:
                theirs_behind = self._comes_from("reference", other.operand)
                score += UPSTREAM * len(behind & theirs_behind) / len(behind | theirs_behind)
            found.append((score, -other.order, other))
        found.sort(key=lambda item: item[:2], reverse=True)
        return [other for _, _, other in found]

    def _bind_stack(self, site: Site) -> bool:
        """Bind a stack of weights, each slice to one of the reference's; whether it was done."""
        x, count = self.port.values.get(site.operand) if site.operand is not None else None, len(site.ids)
        ways = [] if x is None else _ways(x, count)
        prints = [[fingerprint(row)[0] for row in y] for y in ways]
        contracted = site.role == "contract"
        slices = [
            _Slice(site.order, -1, site.role, part, None, site.name, prints=[some[k] for some in prints])
            for k, part in enumerate(site.ids[:, None] if contracted else site.ids)
        ]
        found = self._candidates(slices[0])
        family = self._family(found[0], found, count) if found else []
        if not family and not contracted:
            return False
        for part in slices:
            if family:
                other = next((s for s in family if self._same_operand(part, s)), family[0])
                family.remove(other)
                _ = self._bind_columns(part, [other]) if contracted else self._bind_whole(part, other)
            else:
                self.bind(part, None, self.sure)
            site.columns += part.columns
        return True

    def _family(self, first: Site, found: list[Site], count: float) -> list[Site]:
        """So many uses side by side that one number in their names tells apart, as of experts; or none."""
        path, nodes = parts(first.name)[0], self.reference.nodes
        paths = [(s, parts(s.name)[0]) for s in reversed(found) if s.ids.shape == first.ids.shape]
        for place in (i for i, word in enumerate(path) if word.isdigit() and count != 1):
            alike = [
                s for s, p in paths if (*p[:place], *p[place + 1 :]) == (*path[:place], *path[place + 1 :])
            ]
            family = list({int(s.ids.flat[0]): s for s in alike}.values())  # each weight's best use
            if len(family) != count:
                continue
            family.sort(key=lambda s: s.order)
            behind = ancestors(nodes, family[-1].operand) if family[-1].operand is not None else set()
            if not any(s.node in behind for s in family):
                return family
        return []

    def _pieces(self, site: Site) -> list[Site]:
        """Uses of the reference that a use consists of, or is a piece of: their rows meet the same numbers.

        One side multiplies once what the other multiplies part by part and adds, as ``[x, h] @ w`` and
        ``x @ w_x + h @ w_h``. Rows in another order would be a fault, so each use gives one block of them.
        """
        values = self.port.values.get(site.operand) if site.operand is not None else None
        if site.role not in ("contract", "conv") or values is None or not self.sure:
            return []
        whole = _by_row(site)
        for mine in _row_prints(values, len(whole)):
            blocks: list[list[tuple[Site, np.ndarray]]] = []
            at = 0
            while at < len(mine) and (found := self._longest(site, mine[at:])):
                blocks.append(found)
                at += len(found[0][1])
            if at < len(mine) or (len(blocks) == 1 and len(whole) == len(_by_row(blocks[0][0][0]))):
                continue
            found = list(zip(*blocks, strict=False))  # one way to take the blocks after another
            if any(len({other.order for other, _ in way}) < len(way) for way in found):
                continue
            ids = [np.concatenate([rows for _, rows in way]) for way in found]
            return [
                replace(way[0][0], ids=rows[None] if site.role == "contract" else np.moveaxis(rows, 0, 1))
                for way, rows in zip(found, ids, strict=True)
            ]
        return []

    def _longest(self, site: Site, mine: np.ndarray) -> list[tuple[Site, np.ndarray]]:
        """The reference's uses with the most rows in a row that meet the same numbers, and those rows."""
        found, whole = [], _by_row(site)
        for other in self.first:
            ids = _by_row(other) if other.role == site.role else np.zeros(0)
            values = self.reference.values.get(other.operand) if other.operand is not None else None
            if not ids.size or ids.shape[2:] != whole.shape[2:] or values is None:
                continue
            if other.role == "conv" and ids.shape[1:] != whole.shape[1:]:
                continue
            key = (other.operand, len(ids))
            if key not in self.row_prints:
                self.row_prints[key] = list(_row_prints(values, len(ids)))
            for theirs in self.row_prints[key]:
                for start in np.flatnonzero(_alike(theirs, mine[:1])):
                    n = min(len(mine), len(theirs) - start)
                    same = _alike(theirs[start : start + n], mine[:n])
                    rows = ids[start : start + (n if same.all() else int(same.argmin()))]
                    if not self.taken[1][rows].all():
                        found.append((other, rows))
        longest = max((len(rows) for _, rows in found), default=0)
        return [(other, rows) for other, rows in found if len(rows) == longest]

    def _bind_columns(self, site: Site, found: list[Site]) -> bool:
        """One weight here may be several there, or a part of one: take free columns in order."""
        columns, ids, shared = [], [], None
        size = site.ids.shape[2]
        if size > found[0].ids.shape[2]:
            families = (self._family(s, found, size / s.ids.shape[2]) for s in found)
            found = next(filter(None, families), found)
        for other in found:
            taken = self.taken[int(self.sure)][other.ids[0]].any(0)
            shared = bool(taken.all()) if shared is None else shared
            free = np.arange(taken.size) if shared else np.flatnonzero(~taken)
            free = free[: site.ids.shape[2] - len(columns)]
            columns += [(other.order, int(column)) for column in free]
            ids.append(other.ids[0][:, free])
            if len(columns) == site.ids.shape[2]:
                break
        else:
            return False
        site.columns = columns
        self._bound(site, found[0])
        why = "used twice in the reference" if shared else "by its use"
        self._take(site.ids[0], np.concatenate(ids, 1), found[0].name, why)
        self.last = columns[-1][0] + 1
        return True

    def _bind_whole(self, site: Site, other: Site) -> bool:
        ids = self._arrange(site, other)
        if ids is None:
            return False
        self._bound(site, other)
        mine, theirs = self._complete(site, ids)
        self._take(mine, theirs, other.name, "by its use")
        self.last = other.order + 1
        if site.role == "conv":
            site.columns = [(other.order, column) for column in range(site.ids.shape[0])]
        return True

    def _complete(self, site: Site, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The whole leaf where both sides have one of the same size.

        Only its axes may be moved: rows that one side uses in another order are a fault, not a layout.
        """
        mine, theirs = self.port.leaf(int(site.ids.flat[0])), self.reference.leaf(int(ids.flat[0]))
        if site.role in ("conv", "contract") or mine.stop - mine.start != theirs.stop - theirs.start:
            return site.ids, ids
        table = np.squeeze(np.arange(theirs.start, theirs.stop).reshape(theirs.shape))
        orders = list(permutations(table.shape, tuple(n for n in mine.shape if n != 1)))
        if not orders:
            return site.ids, ids
        moved = [table.transpose(order).ravel() for order in orders]
        best = next((m for m in moved if np.array_equal(m[site.ids - mine.start], ids)), moved[0])
        return np.arange(mine.start, mine.stop), best

    def _arrange(self, site: Site, other: Site) -> np.ndarray | None:
        """The reference's numbers in the order of axes that the port has; the other operands tell."""
        ids = other.ids
        if site.role in ("conv", "contract", "image"):
            return ids if ids.shape == site.ids.shape else None
        values = [
            trace.values.get(node) if node is not None else None
            for trace, node in ((self.reference, other.operand), (self.port, site.operand))
        ]
        if ids.ndim > 1 and values[0] is not None and values[1] is not None:
            order = same_order(values[0], values[1])
            if order is not None and len(order) > ids.ndim:
                lead = len(order) - ids.ndim
                kept = tuple(axis - lead for axis in order if axis >= lead)
                if tuple(ids.shape[axis] for axis in kept) == site.ids.shape:
                    return ids.transpose(kept)
        order = next(permutations(ids.shape, site.ids.shape), None)
        if order is not None:
            return ids.transpose(order)
        return ids.reshape(site.ids.shape) if ids.ndim != site.ids.ndim else None

    def _bind_leaf(self, site: Site) -> None:
        """The last resort: a whole leaf by its size and name."""
        mine = self.port.leaf(int(site.ids.flat[0]))
        size = mine.stop - mine.start
        free = [
            leaf
            for leaf in self.reference.leaves
            if leaf.stop - leaf.start == size
            and not self.counts[0][leaf.start]
            and (not leaf.constant or self._is_constant(mine))
        ]
        best = max(free, key=lambda leaf: similarity(leaf.name, mine.name), default=None)
        if best is None:
            self.kept[mine.start : mine.stop] = True
            return
        ids = np.arange(best.start, best.stop).reshape(best.shape)
        turned = mine.name.endswith("kernel") or ids.shape != mine.shape
        if ids.ndim == 2 and ids.shape[::-1] == mine.shape and turned:
            ids = ids.T
        else:
            ids = np.squeeze(ids)
            shape = tuple(n for n in mine.shape if n != 1)
            order = next(permutations(ids.shape, shape), None)
            ids = ids if order is None else ids.transpose(order)
        self._take(np.arange(mine.start, mine.stop), ids, best.name, "by size and name")

    # --- helpers ---

    def _take(
        self, mine: np.ndarray, theirs: np.ndarray, name: str, why: str, sure: bool | None = None
    ) -> None:
        mine, theirs = mine.ravel(), theirs.ravel()
        sure = self.sure if sure is None else sure
        if sure:
            old, guessed = self.numbers[mine], theirs[self.taken[0][theirs] & ~self.taken[1][theirs]]
            used = (old >= 0) | self.kept[mine]
            # Other numbers than it was used with, or those of another weight, which has guessed wrongly.
            self.result.moved |= bool((used & (old != theirs)).any()) or not np.isin(guessed, old).all()
            self.result.sure[mine], self.kept[mine] = True, False
        self.port.weights[mine] = self.reference.weights[theirs]
        self.numbers[mine] = theirs
        self.taken[: 1 + sure, theirs] = True
        starts = [leaf.start for leaf in self.reference.leaves]
        for index in np.unique(
            np.searchsorted(starts, theirs[:: max(1, theirs.size // 64)], side="right") - 1
        ):
            leaf = self.reference.leaves[index]
            for counts, taken in zip(self.counts, self.taken, strict=True):
                counts[leaf.start] = int(taken[leaf.start : leaf.stop].sum())
        self.result.names.append((self.port.leaf(int(mine[0])).name, name, why))

    def _bound(self, site: Site, other: Site) -> None:
        self.result.sites[site.order] = other.order
        paths = parts(site.name)[0], parts(other.name)[0]
        sure = SURE if all(paths) and self._same_operand(site, other) else SAME
        for pair in (paths, (paths[0], _unnumbered(paths[1]))):  # in a stack, each layer has the same path
            self.pairs[pair] = max(self.pairs.get(pair, 0.0), sure)
        if self.port.leaf(int(site.ids.flat[0])).trainable:
            self.modules.add(paths)

    def _same_operand(self, site: Site, other: Site) -> bool:
        """Whether a use of the port and one of the reference have an equal other operand."""
        if other.operand is None:
            return False
        theirs = self.reference.nodes[other.operand].fingerprint
        mine = [self.port.nodes[site.operand].fingerprint] if site.operand is not None else []
        if isinstance(site, _Slice):
            mine = site.prints
        return theirs is not None and any(print_ is not None and close(print_, theirs) for print_ in mine)

    def _meets_data(self, site: Site) -> bool:
        """Whether a use of the reference is with activations or constants, not with other weights only."""
        nodes = self.reference.nodes
        return nodes[site.node].data or (site.operand is not None and not nodes[site.operand].weighted)

    def _is_taken(self, other: Site, leaf: Leaf) -> bool:
        count = self.counts[int(self.sure)][leaf.start]
        if count in (0, leaf.stop - leaf.start):
            return count > 0
        return bool(self.taken[int(self.sure)][other.ids].all())

    def _is_constant(self, leaf: Leaf) -> bool:
        return not np.ptp(np.real(self.port.given[leaf.start : leaf.stop]))

    def _name(self, ids: np.ndarray) -> str:
        return self.reference.leaf(int(ids.flat[0])).name


def _by_row(site: Site) -> np.ndarray:
    """The numbers of a contraction or convolution by what they meet: (inputs, outputs, *window)."""
    if site.role == "contract":
        return site.ids[0] if len(site.ids) == 1 else site.ids[:0]
    return np.moveaxis(site.ids, 1, 0)


def _ways(x: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    """A value as so many rows, along each axis or pair of axes that has as many places."""
    axes = [(a,) for a in range(x.ndim)] + list(itertools.combinations(range(x.ndim), 2))
    for some in axes:
        if math.prod(x.shape[a] for a in some) == rows:
            yield np.moveaxis(x, some, range(len(some))).reshape(rows, -1)


def _row_prints(x: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    """For each of `_ways`, (rows, 4): what tells the rows apart, in any order of the other axes."""
    for y in _ways(x, rows):
        yield np.stack([y.mean(1), np.abs(y).mean(1), (y * y).mean(1), np.abs(y).max(1)], 1)


def _alike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.all(np.abs(a - b) <= EXACT * np.maximum(a[:, 3:], b[:, 3:]), axis=1)


def _unnumbered(path: tuple[str, ...]) -> tuple[str, ...]:
    return tuple("#" if word.isdigit() else word for word in path)


def _same_role(a: str, b: str) -> bool:
    a, b = ROLES.get(a, a), ROLES.get(b, b)
    return a == b or {a, b} in EXCHANGEABLE


def _fits(site: Site, other: Site) -> bool:
    a, b = site.ids.shape, other.ids.shape
    if site.role in ("contract", "gather"):
        return a[1] == b[1] and (a[0] == b[0] or a[0] * b[0] == 1)
    if site.role == "conv":
        return a[:2] == b[:2] and sorted(a[2:]) == sorted(b[2:])
    return site.ids.size == other.ids.size


def _same_value(a: Node, b: Node) -> bool:
    return a.fingerprint is not None and b.fingerprint is not None and close(a.fingerprint, b.fingerprint)
