"""Why two models part: mistakes that are tried, each named only if it reproduces the numbers.

Two ways lead to a cause. The port's operations are evaluated again with one change, such as the reference's
epsilon, another tensor or another order of operations, and must give the reference's value. Or both sides
are described as computations of the same value by the table in `describe`, and the descriptions differ.
"""

import itertools
import linecache
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from lockstep.align import Alignment, Region, ancestors, behind_moves, ways_out
from lockstep.describe import FUNCTIONS, PARTS, describe, describe_indices, describe_loss, function_of
from lockstep.settings import from_torch
from lockstep.trace import Edit, Node, Trace
from lockstep.values import (
    EXACT,
    NEAR,
    as_numbers,
    close,
    distance,
    fingerprint,
    permutations,
    same_merged,
    same_order,
)

if TYPE_CHECKING:
    from lockstep.comparison import Comparison
    from lockstep.locate import Finding

NEARBY = 24  # operations of the region that are changed
NUMBERS = 24  # numbers of the reference's code that are tried in the place of one of the port's
WAYS = 16  # values behind the difference that are named
SPLITS = 12  # ways to split an axis that are tried
STATISTICS = 4  # operations after the first in which a norm takes its statistics
CHAIN = 12  # operations of which one may be in another place
WORDS = {
    "add": "an added number",
    "sub": "a subtracted number",
    "mul": "a factor",
    "div": "a divisor",
    "pow": "the base or power",
    "select_n": "the mask's value",
}
BUDGET, OVERHEAD = 1e8, 1e5  # numbers that each search may compute again; a try's own cost in them
LOOKUPS = ("embedding", "index", "index_select", "gather", "take", "Gather")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
Array = np.ndarray
Moved = tuple[tuple[int, ...], tuple[int, ...]]  # a shape, and an order of its axes


@dataclass
class Case:
    """A difference with what is needed to explain it; ``t`` and ``j`` are where the values are compared."""

    comparison: "Comparison"
    alignment: Alignment
    regions: tuple[Region, Region]
    finding: "Finding"
    t: int
    j: int
    spent: float = 0.0

    @cached_property
    def cost(self) -> float:
        """Numbers that one try computes again."""
        behind = ancestors(self.port.nodes, self.j) & self.regions[1].nodes
        return OVERHEAD + sum(math.prod(self.port.nodes[i].shape) for i in behind)

    @property
    def reference(self) -> Trace:
        """The reference's trace."""
        return self.alignment.reference

    @property
    def port(self) -> Trace:
        """The port's trace."""
        return self.alignment.port

    def run(
        self, until: int, changed: dict[int, Array], edits: dict[int, Edit] | None = None
    ) -> Array | None:
        """A value of the port with changes of what it is computed of; None: it cannot be computed."""
        self.spent += self.cost
        if self.spent > BUDGET:
            return None
        return self.comparison.models[1].replay(self.port, changed, edits, until).get(until)

    def reproduces(self, changed: dict[int, Array], edits: dict[int, Edit] | None = None) -> bool:
        """Whether changes of the port give the reference's value behind the difference."""
        found = self.run(self.j, changed, edits) if changed or edits else None
        return found is not None and self.is_reference(found)

    def is_reference(self, value: Array) -> bool:
        """Whether a value of the port is the reference's."""
        want = self.reference.values.get(self.t)
        if want is None:
            return False
        alike = _same_numbers(value, want)
        if value.size != want.size or alike is False:
            return bool(alike)
        return same_order(want, value, NEAR) is not None or same_merged(want, value, NEAR)


def _same_numbers(a: Array, b: Array) -> bool | None:
    """Whether two values have the same fingerprint; None: one has none."""
    first, second = (fingerprint(np.asarray(x))[0] for x in (a, b))
    return None if first is None or second is None else close(first, second, NEAR)


def find_cause(
    comparison: "Comparison",
    alignment: Alignment,
    regions: tuple[Region, Region],
    finding: "Finding",
    outputs: dict[int, int],
) -> None:
    """Fill the finding's cause, and its places where the cause tells them; ``outputs``: the port's nodes."""
    if finding.kind == "precision":
        finding.cause = finding.words
        return
    ends = finding.repaired or _ends(outputs, finding)
    if ends is None or finding.reference is None or finding.port is None:
        return
    case = Case(comparison, alignment, regions, finding, *ends)
    first = [_by_loss, _by_relation] if comparison.reference.loss in outputs.values() else []
    if finding.kind == "order":
        first.append(_by_order)
    for search in (
        _by_nan,
        *first,
        _by_settings,
        _by_description,
        _by_indices,
        _by_absence,
        _by_moves,
        _by_numbers,
        _by_sign,
        _by_wiring,
        _by_operands,
        _by_relation,
        _by_order,
        _by_lacking,
        _by_leaving_out,
        _by_dependence,
    ):
        case.spent = 0.0
        try:
            with np.errstate(all="ignore"):
                cause = search(case)
        except (ArithmeticError, IndexError, ValueError):  # values that a mistake was not meant for
            continue
        if cause:
            finding.cause = cause
            if any(_draws(case, port) for port in (False, True)):
                finding.cause += ": the rate of dropout, or one side has none"
                finding.kind = "setting"
            return


def _by_nan(case: Case) -> str:
    """The port gives nan where the reference gives numbers."""
    nan = []
    for port in (False, True):
        values, region = case.alignment.trace(port).values, case.regions[port].nodes
        nan.append(
            any(np.isnan(values[n]).any() for n in region if n in values and values[n].dtype.kind == "f")
        )
    if nan != [False, True]:
        return ""
    nodes = case.port.nodes
    taken = [case.port.values.get(i) for n in case.regions[True].nodes for i in (n, *nodes[n].inputs)]
    if any(x is not None and x.ndim and x.size and (x == -np.inf).all(-1).any() for x in taken):
        return "rows that are masked wholly with -inf have a softmax of nan in the port"
    return ""


def _draws(case: Case, port: bool) -> bool:
    """Whether random numbers are what a side's first differing operations take."""
    nodes, start = (
        case.alignment.trace(port).nodes,
        (case.finding.port if port else case.finding.reference) or 0,
    )
    drawn = {"random", "bernoulli", "bernoulli_", "native_dropout"}
    taken = [start, *ways_out(nodes, case.regions[port].nodes, start)[:2]]
    noise = {
        i
        for n in taken
        for i in (n, *nodes[n].inputs)
        if nodes[i].scalar is not None or not nodes[i].weighted
    }
    return any(nodes[i].op in drawn for i in ancestors(nodes, *noise))


def _ends(outputs: dict[int, int], finding: "Finding") -> tuple[int, int] | None:
    port = next(iter(finding.replace), None)
    return (outputs[port], port) if port in outputs else None


def _steps(case: Case) -> list[Node]:
    """The port's operations between the difference and where it is repaired, and those of tables' rows."""
    nodes = case.port.nodes
    inside = sorted(ancestors(nodes, case.j) & case.regions[1].nodes)[:NEARBY]
    rows = {i for n in inside[:4] for i in nodes[n].inputs if nodes[i].image}
    rows = sorted(i for i in ancestors(nodes, *rows) if nodes[i].kind in ("operation", "structure"))[-NEARBY:]
    return [nodes[i] for i in dict.fromkeys([case.finding.port or 0, *inside, *rows])]


# --- the reference's settings ---


def _by_settings(case: Case) -> str:
    """A convolution or pooling again with the reference's padding, strides, dilation, groups or window."""
    theirs = case.reference.nodes[case.finding.reference or 0]
    for node in _steps(case)[:6]:
        value = case.port.values.get(node.inputs[0]) if node.inputs else None
        if value is None:
            continue
        wanted = from_torch(theirs, node, case.reference, case.port)
        before, has, unpadded = case.port.nodes[node.inputs[0]], dict(node.params), {}
        if wanted and before.op == "pad" and before.inputs[0] in case.port.values:
            config = [tuple(some)[:2] for some in before.params.get("padding_config", ())]
            has["padding"] = tuple(some for some in config if any(some)) or has.get("padding")
            unpadded = {0: lambda x, v=case.port.values[before.inputs[0]]: v}
        wrong = {k: v for k, v in wanted.items() if _plain(has.get(k)) != _plain(v)}
        names = [[k] for k in wrong] + ([list(wrong)] if len(wrong) > 1 else [])
        for some in names:
            edit = Edit({k: wrong[k] for k in some}, unpadded if "padding" in some else {})
            made = case.comparison.models[1].replay(case.port, {}, {node.id: edit}, node.id).get(node.id)
            want = case.reference.values.get(theirs.id)
            if made is not None and want is not None and same_order(want, made, NEAR) is not None:
                return (
                    "equal with "
                    + ", ".join(f"{_word(k)} {_plain(wrong[k])}" for k in some)
                    + "; "
                    + ", ".join(f"the port's is {_plain(has.get(k))}" for k in some)
                )
    return ""


def _word(name: str) -> str:
    return {"window_strides": "strides", "rhs_dilation": "kernel_dilation", "lhs_dilation": "input dilation",
            "feature_group_count": "groups", "window_dimensions": "window"}.get(name, name)  # fmt: skip


def _plain(value: Any) -> Any:
    return tuple(_plain(v) for v in value) if isinstance(value, list | tuple) else value


# --- numbers in the code ---


def _by_numbers(case: Case) -> str:
    """One number of the port's code is another in the reference's, such as an epsilon or a slope."""
    behind = ancestors(case.reference.nodes, case.t) & case.regions[0].nodes
    here = [v for i in sorted(behind) for v in _numbers(case.reference.nodes[i])]
    sizes = {float(n) for i in [*behind][:40] for n in case.reference.nodes[i].shape if n > 1}
    numbers = list(dict.fromkeys([*here, *case.reference.scalars[:200]]))
    for node in _steps(case):
        for position, literal in enumerate(_literals(case, node)):
            if not isinstance(literal, int | float) or isinstance(literal, bool):
                continue
            nothing = {"add": 0.0, "sub": 0.0, "mul": 1.0, "div": 1.0, "pow": 1.0}.get(node.op)
            tries = [
                *([] if nothing is None else [nothing]),
                *here,
                *(n for n in numbers if _alike(n, literal)),
            ]
            tries += [
                literal + 1,
                literal - 1,
                *(s for n in sizes for s in (n, math.sqrt(n), 1 / n, n**-0.5)),
            ]
            if node.dtype == "bool":  # with any other number it lets all pass, or nothing
                nodes = [case.reference.nodes[i] for i in sorted(behind)]
                tries = [v for n in nodes if n.op in COMPARISONS for v in _numbers(n)]
            if node.dtype.startswith("int"):  # an offset: anything else masks or picks something new
                tries = [*([] if nothing is None else [nothing]), literal + 1, literal - 1]
            for number in list(dict.fromkeys(tries))[: 2 * NUMBERS]:
                for value in (number, -number) if literal < 0 else (number,):
                    if math.isclose(value, literal, rel_tol=1e-12):
                        continue
                    edit = Edit({}, {position: lambda x, v=value: np.full_like(x, v)})
                    for edits in ({node.id: edit}, _everywhere(case, literal, value)):
                        if case.reproduces({}, edits):
                            what = _meaning(case, node, literal)
                            return f"{what} is {literal:.6g} in the port, {value:.6g} in the reference"
        if node.op == "integer_pow" and "y" in node.params:
            for power in (2, 3, 4, -1, -2):
                if power != node.params["y"] and case.reproduces({}, {node.id: Edit({"y": power})}):
                    return f"the power is {node.params['y']} in the port, {power} in the reference"
    return ""


def _literals(case: Case, node: Node) -> list[Any]:
    """The numbers that an operation of the port takes, by operand; None: an operand that is no number."""
    inputs = iter(node.inputs)
    given = node.params.get("literals") or [None] * len(node.inputs)
    found = []
    for literal in given:
        operand = case.port.nodes[next(inputs)] if literal is None and node.inputs else None
        found.append(literal if operand is None or operand.weighted else operand.scalar)
    return found


def _everywhere(case: Case, old: float, new: float) -> dict[int, Edit]:
    """A number and what is left of one, as of a momentum, at every operation of the region."""
    found = {}
    for node in _steps(case):
        changes = {}
        for position, literal in enumerate(node.params.get("literals", ())):
            for a, b in ((old, new), (1 - old, 1 - new)):
                if 0 < old < 1 and isinstance(literal, float) and math.isclose(literal, a, rel_tol=1e-9):
                    changes[position] = lambda x, b=b: np.full_like(x, b)
        if changes:
            found[node.id] = Edit({}, changes)
    return found


def _alike(a: float, b: float) -> bool:
    return bool(a) and bool(b) and 1e-4 < abs(a / b) < 1e4


def _numbers(node: Node) -> list[float]:
    found = [*node.params.get("literals", ()), *node.params.values()]
    numbers = [v for v in found if isinstance(v, int | float) and not isinstance(v, bool)]
    return [float(v) for v in numbers if v and math.isfinite(v)]


def _meaning(case: Case, node: Node, number: float) -> str:
    """What a number is, as far as its operation tells."""
    users = [n.op for n in case.port.nodes if node.id in n.inputs]
    if node.op in ("add", "max") and 0 < abs(number) <= 0.01 and {"rsqrt", "sqrt", "div"} & set(users):
        return "epsilon"
    within = node.params.get("within", "")
    if "leaky" in within:
        return "the slope"
    if node.op in COMPARISONS:
        return "the limit"
    return WORDS.get(node.op, f"a number of {node.op}")


# --- functions ---


def _by_absence(case: Case) -> str:
    """One side uses a value as it is that the other side changes first."""
    inside = case.t in case.regions[False].nodes, case.j in case.regions[True].nodes
    mine, theirs = case.reference.values.get(case.t), case.port.values.get(case.j)
    if inside == (True, True) or mine is None or theirs is None or theirs.dtype.kind != "f":
        return ""
    if _draws(case, inside[1]):
        return f"only the {'port' if inside[1] else 'reference'} has dropout, or they have different rates"
    name = "" if inside[1] else function_of(theirs, case.is_reference)
    if name and name not in PARTS:
        return f"the reference computes {name}, which the port leaves out"
    if not inside[0] and (fitted := _fit(mine, theirs)):
        name = function_of(fitted[0], lambda made: distance(made, fitted[1]) <= EXACT)
        if name and name not in PARTS:
            return f"the port computes {name}, which the reference does not"
    for words, change in _changes(case, case.port.nodes[case.j], theirs) if not inside[1] else ():
        if case.is_reference(np.asarray(change(theirs))):
            return words
    return ""


def _by_leaving_out(case: Case) -> str:
    """One side computes something more on a value than the other."""
    port, steps = case.port, _steps(case)
    if case.j not in case.regions[True].nodes:  # that its value was put in repaired the rest
        if not any(case.j in case.alignment.partners(False, i) for i in _taken(case, False)):
            return ""
        return f"the reference computes {_summary(case, False, case.t)}, which the port leaves out"
    chain = [n for n in ways_out(port.nodes, case.regions[True].nodes, steps[0].id) if n <= case.j]
    for end, x in itertools.product(chain[:WAYS], _taken(case, True)[:NEARBY]):
        value = port.values.get(x)
        shape = port.nodes[end].shape
        if value is None or value.size != math.prod(shape) or value.size < 2:
            continue
        if case.reproduces({end: value.reshape(shape)}):
            return f"only the port computes {_summary(case, True, end)}"
    mine, start = case.reference, case.finding.reference or 0
    chain = [n for n in ways_out(mine.nodes, case.regions[False].nodes, start) if n <= case.t]
    for end, x in itertools.product(chain[:WAYS], _taken(case, False)[:NEARBY]):
        a, made = mine.values.get(x), mine.values.get(end)
        if a is None or made is None or a.shape != made.shape or a.dtype.kind != "f" or a.size < 2:
            continue
        edits = {}
        for partner in itertools.islice(case.alignment.partners(False, x), 8):
            y = _arranged(a, made, port.values[partner])
            edits |= _on(steps, partner, lambda _, y=y: y) if y is not None else {}
        if case.reproduces({}, edits):
            name = function_of(a, lambda y, made=made: distance(y, made) <= EXACT)
            return f"the reference computes {name or _summary(case, False, end)}, which the port leaves out"
    return ""


def _arranged(a: Array, made: Array, b: Array) -> Array | None:
    """A value of the shape of ``a``, its axes as those of ``b``, which holds the same as ``a``."""
    order = same_order(a, b, NEAR)
    return None if order is None else np.squeeze(made).transpose(order).reshape(b.shape)


def _taken(case: Case, port: bool) -> list[int]:
    """Equal values that a side's differing operations take, up to where they are compared."""
    nodes, region = case.alignment.trace(port).nodes, case.regions[port].nodes
    end = case.j if port else case.t
    behind = sorted(ancestors(nodes, end) & region) or [end]
    taken = dict.fromkeys(i for n in behind for i in nodes[n].inputs if i not in region)
    return [i for i in taken if not nodes[i].image and nodes[i].kind != "parameter"]


def _summary(case: Case, port: bool, end: int) -> str:
    """Operations of one side up to a node in words: what they are, with which parameters, and where."""
    trace, region = case.alignment.trace(port), case.regions[port].nodes
    inside = [trace.nodes[i] for i in sorted(ancestors(trace.nodes, end) & region)] or [trace.nodes[end]]
    tables = [trace.nodes[i] for n in inside for i in n.inputs if not trace.nodes[i].weighted]
    ops = list(dict.fromkeys(n.op.strip("_") for n in inside if n.kind == "operation"))
    ops = ops or list(dict.fromkeys(n.op.strip("_") for n in inside))
    where = dict.fromkeys(
        f"{PurePath(file).name}:{line}" + (f" in {name}" if (name := _function(file, line)) else "")
        for n in inside for file, line in n.sources[:1]
    )  # fmt: skip
    if any(n.op in ("select_n", "where", "masked_fill", "masked_fill_") for n in inside) or any(
        _is_mask(trace.values.get(n.id)) for n in tables
    ):
        what = f"a mask ({', '.join(ops[:3])})"
    else:
        what = ", ".join(ops[:5])
    owners = dict.fromkeys(
        trace.nodes[i].op for n in inside for i in n.inputs if trace.nodes[i].kind == "parameter"
    )
    what += f" with the parameter {', '.join(list(owners)[:2])}" if owners else ""
    modules = {n.module for n in inside if n.module}
    what += f" of {modules.pop()}" if len(modules) == 1 else ""
    return what + (f" ({', '.join(list(where)[:2])})" if where else "")


def _is_mask(value: Array | None) -> bool:
    """Whether an array only lets numbers pass or not."""
    if value is None or value.size < 2:
        return False
    return value.dtype.kind == "b" or (
        value.dtype.kind == "f" and bool(((value == 0) | (value < -1e3)).all()) and bool(value.any())
    )


def _function(file: str, line: int) -> str:
    """The name of the function that a line is in."""
    text = linecache.getline(file, line)
    depth = len(text) - len(text.lstrip())
    for number in range(line - 1, 0, -1):
        text = linecache.getline(file, number)
        indent = len(text) - len(text.lstrip())
        if text.strip() and indent < depth:
            depth = indent
            if found := re.match(r"\s*def (\w+)", text):
                return found[1]
    return ""


def _by_moves(case: Case) -> str:
    """One operation comes earlier in the port than in the reference, or later."""
    nodes, region = case.port.nodes, case.regions[True].nodes
    behind = ancestors(nodes, case.j)
    for start in [e for e in case.regions[True].entries if e in behind][:2]:
        chain = [n for n in ways_out(nodes, region, start) if n <= case.j][:CHAIN]
        before = [
            i for i in dict.fromkeys(nodes[start].inputs) if not nodes[i].image and i in case.port.values
        ]
        for late in range(1, len(chain)):
            if not nodes[chain[late]].dtype.startswith("float"):
                break
            for early in range(late):
                links = [chain[early - 1]] if early else before[:3]
                for moved, other, word in ((late, early, "after"), (early, late, "before")):
                    if nodes[chain[moved]].kind == "structure" or not nodes[chain[moved]].weighted:
                        continue
                    for link in links:
                        if _moved(case, chain, moved, other, link):
                            a, b = (_what(nodes[chain[k]]) for k in (moved, other))
                            other_word = "before" if word == "after" else "after"
                            return f"the port computes {a} {word} {b}, the reference {other_word}" + (
                                _as_epsilon(case, nodes[chain[moved]], nodes[chain[other]])
                            )
    return ""


def _as_epsilon(case: Case, moved: Node, other: Node) -> str:
    literals = [v for v in moved.params.get("literals", ()) if isinstance(v, float)]
    if moved.op == "add" and literals and 0 < literals[0] < 0.1 and other.op in ("sqrt", "rsqrt"):
        return ": the port adds epsilon outside the root, the reference inside"
    return ""


def _moved(case: Case, chain: list[int], moved: int, other: int, link: int) -> bool:
    """Whether an operation of a chain gives the reference's value in another place of the chain."""
    nodes, node = case.port.nodes, chain[moved]

    def apply(x: Array) -> Array | None:
        own = chain[moved - 1] if moved else link
        places = _positions(nodes[node], own)
        if len(places) != 1 or x.shape != nodes[own].shape:
            return None
        return case.run(node, {}, {node: Edit({}, {places[0]: lambda _: x})})

    if other < moved:  # to an earlier place: what takes the link takes the result
        value = apply(case.port.values[link]) if moved else None
        if value is None or chain[moved - 1] not in nodes[node].inputs:
            return False
        takers = [nodes[n] for n in sorted(case.regions[True].nodes) if n < node and link in nodes[n].inputs]
        edits = _on(takers, link, lambda _: value)
        left = case.run(chain[moved - 1], {}, edits) if edits else None
        return left is not None and left.shape == nodes[node].shape and case.reproduces({node: left})
    x = case.port.values[link]
    if link not in nodes[node].inputs or x.shape != nodes[node].shape:
        return False
    reached = case.run(chain[other], {node: x})
    value = apply(reached) if reached is not None else None
    return (
        value is not None
        and value.shape == nodes[chain[other]].shape
        and case.reproduces({chain[other]: value})
    )


def _positions(step: Node, node: int) -> list[int]:
    """Where an operation takes a value; literals take places too."""
    literals = step.params.get("literals") or [None] * len(step.inputs)
    places = [i for i, literal in enumerate(literals) if literal is None]
    return [place for place, i in zip(places, step.inputs, strict=False) if i == node]


# --- operands ---


def _by_operands(case: Case) -> str:
    """What differs on a changed operand: transposed, shifted, scaled, masked, 1 + weight."""
    steps = _steps(case)
    operands = dict.fromkeys(i for step in steps[:8] for i in step.inputs)
    for i in operands:
        value = case.port.values.get(i)
        if value is None or not case.alignment.is_matched(True, i):
            continue
        number = case.port.nodes[i].scalar
        fixed = number is not None and value.ndim and not case.port.nodes[i].weighted
        fixed = fixed and "within" not in case.port.nodes[i].params  # the library's own number
        for other in (0.0, 1.0) if fixed and value.dtype.kind == "f" else ():
            if number != other and case.reproduces({i: np.full_like(value, other)}):
                return (
                    f"{_what(case.port.nodes[i])} is all {number:g} in the port, {other:g} in the reference"
                )
        for words, change in _changes(case, case.port.nodes[i], value):
            if case.reproduces({}, _on(steps, i, change)):
                return words
    return ""


def _on(steps: list[Node], node: int, change: Callable[[Array], Array]) -> dict[int, Edit]:
    """Let every operation that takes a value take a change of it."""
    found = {}
    for step in steps:
        positions = _positions(step, node)
        if positions:
            found[step.id] = Edit({}, dict.fromkeys(positions, change))
    return found


def _by_sign(case: Case) -> str:
    """An operation adds where the other subtracts, at one call of its line or at all of them."""
    steps = _steps(case)
    for node in (step for step in steps if step.op in ("neg", "add", "sub") and step.inputs):
        same = [step.id for step in steps if (step.op, step.sources[:1]) == (node.op, node.sources[:1])]
        for place in (0,) if node.op == "neg" else (1, 0):
            edit = Edit({}, {place: np.negative})
            if not any(case.reproduces({}, dict.fromkeys(some, edit)) for some in ([node.id], same)):
                continue
            given = next((i for i in node.inputs if place in _positions(node, i)), node.inputs[0])
            what = _what(case.port.nodes[given])
            if (node.op, place) == ("sub", 0):
                return f"{_what(node)} has the other sign in the port"
            return {
                "neg": f"the port takes the negative of {what}, the reference does not",
                "add": f"the port adds {what}, the reference subtracts it",
                "sub": f"the port subtracts {what}, the reference adds it",
            }[node.op]
    return ""


def _by_wiring(case: Case) -> str:
    """The port takes another tensor than the reference, which it has too."""
    mine, theirs = case.reference.nodes[case.t], case.port.nodes[case.j]
    there = next(case.alignment.partners(False, case.t), None)
    if there is not None and next(case.alignment.partners(True, case.j), None) is not None:
        return f"the port takes {_what(theirs)} where the reference takes {_what(mine)}, the port's " + _what(
            case.port.nodes[there]
        )
    steps = _steps(case)
    wanted = list(case.reference.nodes[case.finding.reference or 0].inputs)
    taken = dict.fromkeys(i for step in steps[:4] for i in step.inputs)
    for a in wanted:
        partners = list(itertools.islice(case.alignment.partners(False, a), 4))
        if not partners or any(b in taken for b in partners):
            continue
        for i in taken:
            value, other = case.port.values.get(i), case.port.values[partners[0]]
            if value is None or value.size != other.size or value.dtype.kind != other.dtype.kind:
                continue
            if _same_numbers(value, other):
                continue  # arranged otherwise
            fitted = next((other.transpose(p) for p in permutations(other.shape, value.shape)), None)
            if fitted is not None and case.reproduces({}, _on(steps, i, lambda x, y=fitted: y)):
                theirs = f"{_what(case.reference.nodes[a])}, the port's {_what(case.port.nodes[partners[0]])}"
                mine = _what(case.port.nodes[i])
                return f"the port takes {mine} where the reference takes {theirs}: exchanged"
    for a, b in itertools.combinations(list(taken)[:8], 2):
        x, y = case.port.values.get(a), case.port.values.get(b)
        if x is None or y is None or x.shape != y.shape or x.dtype.kind != "f" or not x.ndim:
            continue
        edits = _on(steps, a, lambda _, y=y: y)
        if edits.keys() & (other := _on(steps, b, lambda _, x=x: x)).keys():
            continue
        if case.reproduces({}, edits | other):
            names = [_what(case.port.nodes[i]) for i in (a, b)]
            return f"{names[0]} and {names[1]} are exchanged in the port"
    start = case.finding.port or 0
    near = [n for n in case.port.nodes[max(0, start - 12) : start + 4] if n.data and n.id not in taken]
    for i, other in itertools.product(list(taken)[:4], near):
        x, y = case.port.values.get(i), case.port.values.get(other.id)
        if x is None or y is None or x.shape != y.shape or x.dtype.kind != "f" or not x.ndim:
            continue
        known = all(case.alignment.is_matched(True, k) for k in other.inputs)
        if not known or _same_numbers(x, y) is not False:
            continue  # unknown, or arranged otherwise
        edits = _on(steps, i, lambda _, y=y: y)
        if not edits.keys() & ancestors(case.port.nodes, other.id) and case.reproduces({}, edits):
            mine = _what(case.port.nodes[i])
            return f"the port takes {mine} where the reference takes what is the port's {_what(other)}"
    return ""


def _changes(case: Case, node: Node, x: Array) -> Iterator[tuple[str, Callable[[Array], Array]]]:
    what = _what(node)
    if x.dtype.kind == "b":
        yield f"{what} is inverted in the port", np.invert
        if x.ndim > 1 and x.shape[-1] == x.shape[-2]:
            yield f"{what} is transposed in the port", lambda x: x.swapaxes(-1, -2)
            for k, word in (
                (0, "causal"),
                (-1, "causal without the present"),
                (1, "causal and one step ahead"),
            ):
                yield (
                    f"the reference's mask is {word}",
                    lambda x, k=k: np.broadcast_to(np.tri(x.shape[-1], k=k) > 0, x.shape),
                )
        yield f"{what} masks nothing in the reference", np.ones_like
        return
    if x.dtype.kind in "iu":
        for k in (1, -1, 2, -2):
            yield f"{what} is {-k:+d} in the port: an offset", lambda x, k=k: x + k
        return
    if node.image or node.kind == "parameter":
        yield f"the reference has 1 + {what}", lambda x: 1 + x
        yield f"the port has 1 + {what}", lambda x: x - 1
        yield f"{what} has the other sign", np.negative
        yield f"the reference takes the exponential of {what}", np.exp
        yield f"the reference takes the softplus of {what}", lambda x: np.logaddexp(x, 0)
    equal = [(a, b) for a, b in itertools.combinations(range(x.ndim), 2) if x.shape[a] == x.shape[b] > 1]
    for a, b in equal:
        yield f"{what} is transposed in the port: its axes {a} and {b}", lambda x, a=a, b=b: x.swapaxes(a, b)
    for axis in range(x.ndim):
        if x.shape[axis] > 1:
            yield f"{what} is reversed along its axis {axis} in the port", lambda x, a=axis: np.flip(x, a)
            for k in (1, -1):
                yield (
                    f"{what} is shifted by one along its axis {axis} in the port",
                    lambda x, a=axis, k=k: np.roll(x, k, a),
                )
    if x.ndim > 1 and x.shape[-1] == x.shape[-2] and node.data:
        for k, word in ((0, "causal"), (-1, "causal without the present")):
            yield (
                f"the reference masks {what}: {word}",
                lambda x, k=k: np.where(np.tri(x.shape[-1], k=k) > 0, x, -np.inf),
            )
    sizes = sorted(
        {n for s in (x.shape, *(case.port.nodes[i].shape for i in node.inputs)) for n in s if n > 1}
    )
    roots = [(f"the square root of {n}", math.sqrt(n)) for n in sizes]
    roots = [(f"{root:g}, {word}" if root == round(root) else word, root) for word, root in roots]
    for word, factor in (*roots, *((str(n), float(n)) for n in sizes)):
        yield f"the reference divides {what} by {word}", lambda x, f=factor: x / f
        yield f"the reference multiplies {what} by {word}", lambda x, f=factor: x * f
    behind = sorted(ancestors(case.reference.nodes, case.t) & case.regions[0].nodes)
    for number in dict.fromkeys(v for i in behind for v in _numbers(case.reference.nodes[i])):
        if number not in (0.0, 1.0) and math.isfinite(number):
            n = round(number / (number - 1))
            if n > 1 and abs(n / (n - 1) - number) < 1e-12:
                yield (
                    f"the variance is biased in the port (by n = {n}, the reference by n - 1)",
                    lambda x, f=number: x * f,
                )
            yield f"the reference multiplies {what} by {number:.6g}", lambda x, f=number: x * f
            yield f"the reference divides {what} by {number:.6g}", lambda x, f=number: x / f


def _what(node: Node) -> str:
    if node.kind == "parameter":
        return node.op
    within = str(node.params.get("within", ""))
    where = f" ({node.sources[0][0].rpartition('/')[2]}:{node.sources[0][1]})" if node.sources else ""
    owner = within or node.module
    return f"{node.op}{f' of {owner}' if owner else ''}{where}"


# --- relations ---


def _by_relation(case: Case) -> str:
    """One value is the other times a number, or plus or times a value that one side leaves out."""
    for t, j in _related(case):
        a, b = case.reference.values.get(t), case.port.values.get(j)
        if a is None or b is None or a.dtype.kind not in "fc":
            continue
        fitted = _fit(a, b)
        if fitted is None:
            continue
        x, y = fitted
        if (t, j) != (case.t, case.j) and not case.reproduces({j: x.reshape(b.shape)}):
            continue
        keep = np.abs(y) > 1e-6 * np.abs(y).max(initial=0)
        ratio = x[keep] / y[keep]
        if ratio.size and np.ptp(ratio.real) <= 1e-9 * abs(ratio[0]) and abs(ratio[0] - 1) > 1e-9:
            number = _count(case, float(ratio[0].real))
            if number and (t, j) == (case.reference.loss, case.port.loss):
                case.finding.reference, case.finding.port = t, j
                return f"another denominator: the reference's loss is {number} times the port's"
            return f"the reference's is {number} times the port's" if number else ""
        for words, left in (("the port leaves out {}", x - y), ("only the port adds {}", y - x)):
            if name := _known(case, left, words.startswith("the port")):
                return words.format(name)
        if keep.all():
            for words, left in (
                ("the port does not multiply by {}", x / y),
                ("only the port multiplies by {}", y / x),
            ):
                if name := _known(case, left, words.startswith("the port")):
                    return words.format(name)
    return ""


def _related(case: Case) -> list[tuple[int, int]]:
    ways: list[list[int]] = [
        ways_out(trace.nodes, case.regions[port].nodes, start or 0)[:6]
        for port, trace, start in (
            (False, case.reference, case.finding.reference),
            (True, case.port, case.finding.port),
        )
    ]
    before = [(case.finding.reference or 0, b) for _, b in case.finding.before]
    before += [(a, case.finding.port or 0) for a, _ in case.finding.before]
    return [(case.t, case.j), *itertools.product(ways[0], ways[1]), *before]


def _fit(a: Array, b: Array) -> tuple[Array, Array] | None:
    """Both in the order of axes in which they are most alike."""
    x, y = np.squeeze(as_numbers(a)), np.squeeze(as_numbers(b))
    orders = list(permutations(x.shape, y.shape))[:24]
    if not orders or not x.size or x.size != y.size:
        return None
    best = min(orders, key=lambda p: float(np.abs(x.transpose(p) - y).sum()))
    return x.transpose(best), y


def _count(case: Case, ratio: float) -> str:
    """A factor in words: a whole number, its inverse or root, or one of the code's numbers; else nothing."""
    for word, value in (("", ratio), ("1 / ", 1 / ratio)):
        if abs(value - round(value)) <= 1e-9 * abs(value) and 1.5 < abs(value) < 1e7:
            return f"{word}{round(value)}"
        square = value * value
        if abs(square - round(square)) <= 1e-9 * square and 1.5 < square < 1e5:
            return f"{word}the square root of {round(square)}"
    if ratio < 0:
        return ""
    fraction = Fraction(abs(ratio)).limit_denominator(4096)
    n = max(fraction.numerator, fraction.denominator)
    sizes = {x.size // y.size for x, y in _reduced(case) if y.size and x.size % y.size == 0}
    if abs(fraction.numerator - fraction.denominator) == 1 and n in sizes:
        return f"{fraction} (a variance by n and by n - 1, n = {n})"
    if fraction and fraction.numerator < 4096 and abs(float(fraction) / abs(ratio) - 1) < 1e-12:
        return str(fraction)
    behind = sorted(ancestors(case.reference.nodes, case.t) & case.regions[0].nodes)
    here = [v for i in behind for v in _numbers(case.reference.nodes[i])]
    return next((f"{ratio:.6g}" for n in here if abs(n / abs(ratio) - 1) < 1e-9), "")


def _reduced(case: Case) -> Iterator[tuple[Array, Array]]:
    """Pairs of operands and results that the port reduces before or within the difference."""
    nodes, values = case.port.nodes, case.port.values
    start = case.finding.port or 0
    for node in (nodes[i] for i in sorted(ancestors(nodes, case.j)) if i > start - 12):
        for i in node.inputs:
            if node.op.startswith("reduce") and i in values and node.id in values:
                yield values[i], values[node.id]


def _known(case: Case, left: Array, reference: bool) -> str:
    """The name of a value of one side that equals what is left."""
    mine, _ = fingerprint(left)
    if mine is None or mine[0] < 1e-12:
        return ""
    trace = case.reference if reference else case.port
    for node in trace.nodes:
        if (
            node.fingerprint is not None
            and close(mine, node.fingerprint, 1e-8)
            and (node.image or node.kind == "parameter" or case.alignment.is_matched(not reference, node.id))
        ):
            owner = next(
                (n for n in (node, *(trace.nodes[i] for i in node.inputs)) if n.kind == "parameter"), None
            )
            if node.kind == "parameter" or (node.image and owner is not None):
                return f"the parameter {owner.op if owner else node.op}"
            return _what(node)
    return ""


# --- descriptions ---


def _by_description(case: Case) -> str:
    """Both compute something that is known of the same value: another function, axes, window or padding."""
    return _described(case, False) or _described(case, True)


def _described(case: Case, whole_line: bool) -> str:
    nodes = [_ends_of(case, port, whole_line) for port in (False, True)]
    ends = [[value for _, value in some] for some in nodes]
    numbers = [n for trace in (case.reference, case.port) for n in trace.scalars if 0 < n < 0.1]
    for t, j in _pairs(case):
        x, y = case.reference.values.get(t), case.port.values.get(j)
        if x is None or y is None or x.shape == () or x.dtype.kind != "f":
            continue
        order = next((p for p in permutations(x.shape, y.shape) if distance(x.transpose(p), y) <= NEAR), None)
        if order is None:
            continue
        mine = [(describe(x, end, tuple(range(x.ndim)), numbers), k) for k, end in nodes[0]]
        theirs = [(describe(y, end, order, numbers), k) for k, end in nodes[1]]
        if fitted := _fit(ends[1][-1], ends[0][-1]):  # in another order of axes
            end = fitted[0].reshape(ends[0][-1].shape)
            theirs.append((describe(x, end, tuple(range(x.ndim)), numbers), nodes[1][-1][0]))
        mine, theirs = (
            [
                (name, k)
                for place, (name, k) in enumerate(both)
                if name and (place == len(both) - 1 or not _is_part(name))
            ]
            for both in (mine, theirs)
        )
        if {name for name, _ in mine} & {name for name, _ in theirs}:
            continue
        for (a, end), (b, other) in itertools.product(reversed(mine), reversed(theirs)):
            same = case.reference.values[end].size == case.port.values[other].size
            functions = {a, b} <= FUNCTIONS.keys()  # which other formulas have as steps
            if (same and (not functions or _repairs(case, end, other))) or (
                not same and a.split()[:2] == b.split()[:2]
            ):
                return f"the reference computes {a}, the port {b}"
    return ""


def _repairs(case: Case, t: int, j: int) -> bool:
    """Whether the reference's value in the place of the port's gives the rest, if that can be tried."""
    if j >= case.j or j not in ancestors(case.port.nodes, case.j):
        return True
    value = case.port.values[j]
    fitted = _fit(case.reference.values[t], value)
    return fitted is None or case.reproduces({j: fitted[0].reshape(value.shape)})


def _is_part(name: str) -> bool:
    """Whether a computation is rather a part of another than what is meant."""
    return name in PARTS or name.startswith(("the first", "the last"))


def _pairs(case: Case) -> list[tuple[int, int]]:
    """Equal values that both sides' differing operations take."""
    behind, found = ancestors(case.port.nodes, case.j), list(case.finding.before)
    for t in _taken(case, False)[:NEARBY]:
        size = math.prod(case.reference.nodes[t].shape)
        same = [j for j in case.alignment.partners(False, t) if j in behind and j != case.j]
        found += [(t, j) for j in same if math.prod(case.port.nodes[j].shape) == size][-1:]
    for t, j in list(found):  # before one side split an axis, as into groups
        mine, theirs = case.reference.nodes, case.port.nodes
        ways = itertools.product(behind_moves(mine, t), behind_moves(theirs, j))
        fits = [pair for pair in ways if sorted(mine[pair[0]].shape) == sorted(theirs[pair[1]].shape)]
        found += [pair for pair in fits if pair != (t, j)][:1]
    return list(dict.fromkeys(found))[:8]


def _ends_of(case: Case, port: bool, whole_line: bool) -> list[tuple[int, Array]]:
    """Values behind the difference, and what convolutions take of them with their own zeros around."""
    trace, end = case.alignment.trace(port), case.j if port else case.t
    start = (case.finding.port if port else case.finding.reference) or 0
    line = trace.nodes[start].sources[:1] if whole_line else ()
    ways = [
        n
        for n in ways_out(trace.nodes, case.regions[port].nodes, start)
        if n <= end or (line and trace.nodes[n].sources[:1] == line)
    ][:WAYS]
    found = [(n, trace.values[n]) for n in dict.fromkeys([*ways, end]) if n in trace.values]
    padded = [(n, _padded(trace, trace.nodes[n])) for n in ways if "conv" in trace.nodes[n].op]
    return [*padded, *found]


def _padded(trace: Trace, node: Node) -> Array:
    """What a convolution takes, with its own padding."""
    x, padding = trace.values[node.inputs[0]], node.params.get("padding", 0)
    spec = node.params.get("dimension_numbers")
    axes = spec[0][2:] if spec else range(2, x.ndim)
    pads = [(0, 0)] * x.ndim
    each = padding if isinstance(padding, list | tuple) else [padding]
    for axis, pad in zip(axes, each * len(list(axes)) if len(each) == 1 else each, strict=True):
        pads[axis] = tuple(pad) if isinstance(pad, list | tuple) else (pad, pad)
    return np.pad(x, pads)


def _by_indices(case: Case) -> str:
    """Both look up rows of a table, with other indices that are known."""
    found = []
    for port in (False, True):
        trace = case.alignment.trace(port)
        behind = ancestors(trace.nodes, case.j if port else case.t) & case.regions[port].nodes
        near = {i for n in behind for i in (n, *trace.nodes[n].inputs)}
        near |= ancestors(trace.nodes, *(i for i in near if trace.nodes[i].image))
        lookups = [trace.nodes[n] for n in near if trace.nodes[n].op in LOOKUPS]
        taken = sorted(ancestors(trace.nodes, *(i for node in lookups for i in node.inputs)), reverse=True)
        arrays = [trace.values[i] for i in taken if i in trace.values and trace.values[i].dtype.kind in "iu"]
        ids = [trace.values[n.id] for n in trace.nodes if n.kind == "input" and n.dtype.startswith("int")]
        found.append(next((words for a in arrays[:NEARBY] if (words := describe_indices(a, ids))), ""))
    if all(found) and found[0] != found[1]:
        return f"the reference looks up {found[0]}, the port {found[1]}"
    return ""


def _by_loss(case: Case) -> str:
    """Both losses are known ones of the same outputs."""
    found = []
    for trace in (case.reference, case.port):
        end = trace.loss or 0
        behind = [i for i in sorted(ancestors(trace.nodes, end)) if i in trace.values]
        values = [trace.values[i] for i in dict.fromkeys([*trace.outputs.values(), *behind[::-1]])]
        given = [trace.values[i] for i in behind if trace.nodes[i].kind in ("input", "constant")]
        tries = [(x, y) for x in values[:NEARBY] for y in given if x.dtype.kind == "f" and x.ndim and y.ndim]
        loss = float(np.real(trace.values[end].item()))
        names = (describe_loss(loss, x, y, trace.scalars) for x, y in tries)
        found.append(next(filter(None, names), ""))
    if all(found) and found[0] != found[1]:
        return f"the reference's loss is {found[0]}, the port's {found[1]}"
    return ""


def _by_dependence(case: Case) -> str:
    """One side's value follows from an input, or from running statistics, that the other's does not."""
    inputs = []
    for port, end in ((False, case.t), (True, case.j)):
        trace = case.alignment.trace(port)
        behind = ancestors(trace.nodes, end)
        inputs.append([(n.op, n.id in behind) for n in trace.nodes if n.kind == "input"])
    same = len(inputs[0]) == len(inputs[1]) and any(used for _, used in inputs[1])
    for (name, mine), (_, theirs) in zip(*inputs, strict=False) if same else ():
        if mine and not theirs:
            return f"the port does not use the input {name}, the reference does"
    leaves = []
    for port, start in ((False, case.finding.reference), (True, case.finding.port)):
        trace = case.alignment.trace(port)
        first = [start or 0, *ways_out(trace.nodes, case.regions[port].nodes, start or 0)[:STATISTICS]]
        tables = ancestors(
            trace.nodes, *(i for n in first for i in trace.nodes[n].inputs if trace.nodes[i].image)
        )
        some = [x for x in trace.leaves if x.node in tables and not x.trainable]
        leaves.append([x for x in some if re.search("mean|var", x.name)])
    if bool(leaves[0]) != bool(leaves[1]):
        side, near = ("reference", leaves[0]) if leaves[0] else ("port", leaves[1])
        other, numbers = case.alignment.trace(bool(leaves[0])), case.comparison.binding.numbers
        behind = ancestors(other.nodes, *other.outputs.values())
        used = [x for x in other.leaves if x.node in behind]  # anywhere in the model
        mine, theirs = (near, used) if leaves[0] else (used, near)
        if not any(a.start <= numbers[b.start] < a.stop for a in mine for b in theirs):
            return f"only the {side} uses the running statistics {', '.join(x.name for x in near[:2])}"
    return ""


def _by_lacking(case: Case) -> str:
    """The port has no weight for some of the reference's: all outputs are equal if those are zero."""
    comparison, reference = case.comparison, case.reference
    numbers, words = comparison.binding.numbers, []
    lacking = reference.weights != 0
    lacking[numbers[numbers >= 0]] = False
    for leaf in reference.leaves:
        part = lacking[leaf.start : leaf.stop]
        part &= leaf.trainable
        if count := int(part.sum()):
            words.append(leaf.name if part.all() else f"{count} numbers of {leaf.name}")
    if not words or comparison.replaced or reference.partial:
        return ""
    made = comparison.models[0].trace(None, np.where(lacking, 0, reference.weights))
    ends = {node: made.outputs[label] for label, node in reference.outputs.items()}
    for _, t, j in comparison.pairs:
        if same_order(made.values[ends[t]], case.port.values[j], NEAR) is None:
            return ""
    return f"the port has no weight for {', '.join(words[:3])}; equal if they are zero in the reference"


# --- the order of numbers ---


def _by_order(case: Case) -> str:
    """The port's numbers are the reference's in another order: which one."""
    start = case.finding.reference or 0
    pairs = [(start, case.finding.port or 0), (case.t, case.j)]
    if case.finding.kind == "order":
        taken = [i for i in case.reference.nodes[start].inputs if not case.reference.nodes[i].image]
        pairs += [(i, case.finding.port or 0) for i in taken]
    for t, j in pairs:
        a, b = case.reference.values.get(t), case.port.values.get(j)
        if a is None or b is None or a.size != b.size or a.size > 2**18 or a.dtype.kind not in "fc":
            continue
        for order in permutations(np.squeeze(a).shape, np.squeeze(b).shape):
            x, y = np.squeeze(a).transpose(order), np.squeeze(b)
            for axis in range(x.ndim):
                if words := _slices(x, y, axis):
                    return words
        for k in [k for k, _ in _pairs(case)] + list(case.reference.nodes[t].inputs):
            x = case.reference.values.get(k)
            mine, theirs = (_arrangement(x, v) if x is not None else None for v in (a, b))
            if mine and theirs and mine != theirs:
                return _as_words(mine, theirs)
    return _by_split(case, start) if case.finding.kind == "order" else ""


def _as_words(mine: Moved, theirs: Moved) -> str:
    shown = [f"{shape} in the order of axes {order}" for shape, order in (mine, theirs)]
    return f"the reference takes {shown[0]}, the port {shown[1]}"


def _by_split(case: Case, start: int) -> str:
    """An axis is split in another way, as into another number of heads."""
    for k, j in case.finding.before:
        end = start
        while after := [n.id for n in case.reference.nodes if end in n.inputs and n.kind == "structure"]:
            end = after[0]
        x, a, b = case.reference.values.get(k), case.reference.values.get(end), case.port.values.get(j)
        if x is None or a is None or b is None:
            continue
        mine, theirs = _arrangement(x, a), _arrangement(x, b)
        if mine and theirs and np.squeeze(x).ndim < len(mine[0]) == len(theirs[0]) and mine[0] != theirs[0]:
            return _as_words(mine, theirs)
    return ""


def _arrangement(x: Array, y: Array) -> Moved | None:
    """Into which shape, and then order of axes, an array must be brought to be another; None: into none."""
    x, y = np.squeeze(x), np.squeeze(y)
    if x.size != y.size or not 1 < x.ndim <= 5:
        return None
    shapes = [x.shape]
    for axis, n in enumerate(x.shape):
        twos = [(p, n // p) for p in range(2, n) if n % p == 0]
        threes = [(p, q, m // q) for p, m in twos for q in range(2, m) if m % q == 0]
        shapes += [(*x.shape[:axis], *some, *x.shape[axis + 1 :]) for some in (*twos, *threes)[:SPLITS]]
    few, found = y.ravel()[:9], []
    for shape in shapes:
        for order in itertools.permutations(range(len(shape))) if len(shape) <= 6 else ():
            moved = x.reshape(shape).transpose(order)
            if distance(moved.flat[:9], few) <= NEAR and distance(moved.ravel(), y.ravel()) <= NEAR:
                if moved.shape == y.shape:
                    return shape, order
                found.append((shape, order))
    return found[0] if found else None


def _slices(x: Array, y: Array, axis: int) -> str:
    """What is done to the slices along one axis: reversed, shifted, or split and interleaved."""
    a, b = (np.moveaxis(v, axis, 0).reshape(v.shape[axis], -1) for v in (x, y))
    n = a.shape[0]
    if n < 2 or n > 512:
        return ""
    order = [int(np.abs(a - row).sum(1).argmin()) for row in b]
    if sorted(order) != list(range(n)) or order == list(range(n)) or distance(a[order], b) > NEAR:
        return ""
    if order == list(range(n))[::-1]:
        return f"the port's is reversed along axis {axis}"
    if order == [*range(n // 2, n), *range(n // 2)] and n > 2:
        return f"the halves along axis {axis} are exchanged in the port"
    for k in range(1, n):
        if order == [(i + k) % n for i in range(n)]:
            return f"the port's is shifted by {k if k <= n // 2 else k - n} along axis {axis}"
    for parts in (p for p in range(2, n) if n % p == 0):
        if order == list(np.arange(n).reshape(parts, -1).T.ravel()):
            return f"axis {axis} is {parts} parts of {n // parts} in the reference, interleaved in the port"
    for parts in (p for p in range(2, n + 1) if n % p == 0):
        blocks = np.arange(n).reshape(parts, -1)
        for swap in itertools.permutations(range(parts)) if parts <= 6 else ():
            if order == list(blocks[list(swap)].ravel()):
                return f"the parts along axis {axis} are in the order {tuple(swap)} of the reference's"
    return ""
