"""Which leaf of one model is which leaf of the other: by name, and by order of call, kind and shapes."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lockstep import kinds
from lockstep.kinds import Link, Path
from lockstep.observe import Call
from recipe.console import UserError


@dataclass
class Leaf:
    """A module that is called and calls no other."""

    path: str
    kind: str
    module: Any
    call: Call  # the first
    tensors: Mapping[Any, Any]  # parameters and statistics: of PyTorch by name, of Flax by path


@dataclass
class Pair:
    """Two leaves that are compared."""

    torch: Leaf
    flax: Leaf
    links: list[Link] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """PyTorch's kind, unless only Flax's is known."""
        return self.flax.kind if not kinds.is_known(self.torch.kind) else self.torch.kind


def leaves_of(calls: Sequence[Call], tensors: Any) -> list[Leaf]:
    """The leaves in the order of their first calls; ``tensors`` gives a module's."""
    found: dict[str, Leaf] = {}
    for call in calls:
        if call.path not in found:
            own = tensors(call.module)  # as they are after the pass; statistics as they were before it
            own |= {name: before for name, before in call.statistics.items() if name in own}
            found[call.path] = Leaf(call.path, call.kind, call.module, call, own)
    return list(found.values())


def pair_leaves(torch: list[Leaf], flax: list[Leaf], overrides: Mapping[str, str]) -> list[Pair]:
    """Pair what ``overrides`` says, then leaves of the same name, then the rest in order of call.

    Raises:
        UserError: an override names a leaf that was not called.
    """
    by_torch, by_flax = {leaf.path: leaf for leaf in torch}, {leaf.path: leaf for leaf in flax}
    pairs = []
    for a, b in overrides.items():
        pairs.append((_get(by_torch, a, "PyTorch"), _get(by_flax, b.strip("/"), "Flax")))
    for path in {b.path for _, b in pairs}:
        named = [a.path for a, b in pairs if b.path == path]
        if len(named) > 1:
            raise UserError(f"pairs: {' and '.join(named)} are both paired with Flax's {path}; choose one")
    named = {kinds.plain(leaf.path): leaf for leaf in flax}
    taken = {id(leaf) for both in pairs for leaf in both}
    same = []
    for leaf in torch:
        other = named.get(kinds.plain(leaf.path))
        if other and not taken & {id(leaf), id(other)} and affinity(leaf, other) > 0:
            same.append((leaf, other))
    if 2 * len(same) >= len(flax):  # else names agree by chance, e.g. numbers that one side counts from 0
        pairs += same
        taken |= {id(leaf) for both in same for leaf in both}
    rest = [[leaf for leaf in leaves if id(leaf) not in taken] for leaves in (torch, flax)]
    pairs += _align(*rest)
    taken = {id(leaf) for both in pairs for leaf in both}
    # What is called in another order is still a pair if nothing else could be meant.
    rest = [[leaf for leaf in leaves if id(leaf) not in taken] for leaves in (torch, flax)]
    for leaf in rest[0]:
        fits = [other for other in rest[1] if affinity(leaf, other) > 4 and leaf.tensors]
        if len(fits) == 1 and sum(affinity(other, fits[0]) > 4 for other in rest[0]) == 1:
            pairs.append((leaf, fits[0]))
    order = {id(leaf): index for index, leaf in enumerate(torch)}
    pairs.sort(key=lambda both: order[id(both[0])])
    return [Pair(a, b, kinds.link(a.kind, a.tensors, b.tensors, b.module)) for a, b in pairs]


def _get(leaves: dict[str, Leaf], path: str, framework: str) -> Leaf:
    if path not in leaves:
        near = difflib.get_close_matches(path, leaves, 3) or list(leaves)[:3]
        raise UserError(
            f"pairs: {framework} calls no layer {path!r}, a module that itself calls no other; "
            f"similar: {', '.join(near)}"
        )
    return leaves[path]


def affinity(torch: Leaf, flax: Leaf) -> float:
    """How well two leaves fit, 0 if they cannot be a pair."""
    known = kinds.is_known(torch.kind), kinds.is_known(flax.kind)
    if torch.kind == flax.kind:
        score = 4.0
    elif torch.kind in kinds.NORMS and flax.kind in kinds.NORMS:
        score = 2.0
    elif all(known) or (not any(known) and not torch.tensors):
        return 4.0 if kinds.plain(torch.kind) == kinds.plain(flax.kind) else 0.0
    else:
        score = 1.0
    if bool(torch.tensors) != bool(flax.tensors):
        return score / 2 if torch.kind == flax.kind else 0.0
    if torch.tensors:
        links = kinds.link(torch.kind, torch.tensors, flax.tensors, flax.module)
        weights = any("weight" in source for link in links for source in link.sources)
        norm = torch.kind == flax.kind and torch.kind in kinds.NORMS  # may lack its scale
        if not weights and not norm and any("weight" in name for name in torch.tensors):
            return 0.0
        if not links:
            return 0.0
        score += len(links) / max(len(flax.tensors), 1)
    elif torch.kind != flax.kind:
        return 0.0
    names = [leaf.path.replace("/", ".").lower().split(".") for leaf in (torch, flax)]
    score += 0.5 * (names[0][-1] == names[1][-1]) + 0.3 * len(set(names[0]) & set(names[1])) / len(names[0])
    a, b = torch.call.outputs[:1], flax.call.outputs[:1]
    if a and b:
        score += 0.5 * any(
            a[0].transpose(layout).shape == b[0].shape for layout in kinds.layouts(a[0].ndim, torch.kind)
        )
    return score


def _align(torch: list[Leaf], flax: list[Leaf]) -> list[tuple[Leaf, Leaf]]:
    """The pairs of greatest total affinity that keep the order of both."""
    best = np.zeros((len(torch) + 1, len(flax) + 1))
    scores = np.array([[affinity(a, b) for b in flax] for a in torch]).reshape(len(torch), len(flax))
    for i in reversed(range(len(torch))):
        for j in reversed(range(len(flax))):
            together = scores[i, j] + best[i + 1, j + 1] if scores[i, j] else -1.0
            best[i, j] = max(best[i + 1, j], best[i, j + 1], together)
    i, j, pairs = 0, 0, []
    while i < len(torch) and j < len(flax):
        if scores[i, j] and best[i, j] == scores[i, j] + best[i + 1, j + 1]:
            pairs.append((torch[i], flax[j]))
            i, j = i + 1, j + 1
        elif best[i, j] == best[i + 1, j]:
            i += 1
        else:
            j += 1
    return pairs


@dataclass(frozen=True)
class Loose:
    """A parameter of a module that calls others, e.g. a position embedding, and its counterpart."""

    source: str
    variable: Path
    to_flax: Any


def pair_loose(torch: Mapping[str, np.ndarray], flax: Mapping[Path, Any]) -> list[Loose]:
    """Pair parameters by name, and what is left by shape where only one fits."""
    found, rest = [], dict(flax)
    for name, tensor in torch.items():
        for path, variable in rest.items():
            arrange = kinds.arrangement("", tensor.shape, tuple(variable.shape), str(path[-1]))
            if kinds.plain(name) == kinds.plain("".join(map(str, path))) and arrange:
                found.append(Loose(name, path, arrange))
                del rest[path]
                break
    done = {loose.source for loose in found}
    for name, tensor in torch.items():
        if name not in done:
            fits = [path for path, variable in rest.items() if tuple(variable.shape) == tensor.shape]
            rivals = [n for n, other in torch.items() if n not in done and other.shape == tensor.shape]
            if len(fits) == len(rivals) == 1:
                found.append(Loose(name, fits[0], lambda w: w))
                del rest[fits[0]]
    return found
