"""What a comparison found, and how it is said: on screen within 80 columns, and as JSON."""

import json
import linecache
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from rich.table import Table
from rich.text import Text

from lockstep.trace import Source

WIDTH = 80
KINDS = {
    "values": "the same inputs, another result",
    "order": "the same numbers, arranged otherwise",
    "wiring": "the operations take different tensors",
    "missing": "one side lacks it",
    "weights": "the given weights differ",
    "gradient": "equal forward, another gradient",
    "state": "another state after the pass",
    "setting": "another setting",
    "precision": "a narrower type on one side only",
    "loss": "another loss of equal outputs",
    "parameter": "another parameter after training steps",
    "float32": "equal in float64, further apart in float32 than rounding explains",
}


@dataclass
class Place:
    """Where one side is at a difference."""

    op: str
    module: str = ""
    shape: tuple[int, ...] = ()
    sources: tuple[Source, ...] = ()  # innermost first; then lines on which operands were made
    depth: int = 3  # how many of them are the operation's own

    def to_json(self) -> dict[str, Any]:
        """Files without folders, so that it says the same on every machine."""
        return {
            "op": self.op,
            "module": self.module,
            "shape": list(self.shape),
            "sources": [[PurePath(file).name, line] for file, line in self.sources],
        }

    def lines(self) -> list[str]:
        """What is computed, and each line of the user's code with its text."""
        what = " ".join(
            filter(None, [self.op, f"of {self.module}" if self.module else "", _shape(self.shape)])
        )
        found = [what]
        own, operands = self.sources[: self.depth][:3], self.sources[self.depth :]
        shown = [("<- " if i else "", line) for i, line in enumerate(own)]
        for arrow, (file, number) in [*shown, *(("takes ", line) for line in operands)]:
            text = linecache.getline(file, number).strip()
            found.append(f"{arrow}{PurePath(file).name}:{number}" + (f": {text}" if text else ""))
        return found


@dataclass
class Difference:
    """One difference: at most one for each fault.

    Attributes:
        kind: a key of `KINDS`.
        difference: in words, with how far the numbers are apart.
        reference: the place in the reference; None where it has none.
        port: the place in the port.
        before: what was equal before: the places of both sides.
        cause: in words, only if it reproduces the numbers; else empty.
    """

    kind: str
    difference: str
    reference: Place | None = None
    port: Place | None = None
    before: list[tuple[Place, Place]] = field(default_factory=list)
    cause: str = ""
    also: int = 0  # further calls of the same lines with the same cause

    def to_json(self) -> dict[str, Any]:
        """As `Result.to_json` has it."""
        return {
            "kind": self.kind,
            "difference": self.difference,
            "cause": self.cause,
            "reference": self.reference.to_json() if self.reference else None,
            "port": self.port.to_json() if self.port else None,
        }


@dataclass
class Row:
    """One call of a module of the reference: the largest difference of its output, relative to its size.

    None: the port has no value to compare it with.
    """

    module: str
    shape: tuple[int, ...]
    difference: float | None


@dataclass
class Result:
    """A comparison of two models.

    Attributes:
        equal: whether everything that was compared is equal.
        differences: in the order of execution: weights, forward, state, loss, gradients, training steps.
        notes: what was changed for the comparison, what was not compared, and harmless differences.
        compared: what was, in words, such as "2 outputs" or "gradients of 12 parameters".
        rows: a table of the reference's modules.
        versions: of the packages that took part.
        seconds: how long it took.
    """

    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    compared: list[str] = field(default_factory=list)
    near: bool = False  # equal within float32's rounding only
    rows: list[Row] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def equal(self) -> bool:
        """Whether everything that was compared is equal."""
        return not self.differences

    @property
    def first(self) -> Difference | None:
        """The first difference."""
        return self.differences[0] if self.differences else None

    @property
    def verdict(self) -> str:
        """``equal``, ``equal within float32's rounding`` or ``different``, and what was compared."""
        if self.differences:
            n = len(self.differences)
            return f"different: {n} difference{'s' if n > 1 else ''}"
        word = "equal within float32's rounding" if self.near else "equal in float64"
        return f"{word}: {', '.join(self.compared)}" if self.compared else word

    def to_json(self) -> str:
        """The whole result as JSON; sources are innermost first."""
        content = {
            "equal": self.equal,
            "verdict": self.verdict,
            "differences": [difference.to_json() for difference in self.differences],
            "notes": self.notes,
            "versions": self.versions,
            "seconds": round(self.seconds, 2),
        }
        return json.dumps(content, indent=1)

    def table(self) -> Table:
        """One row a module call of the reference."""
        table = Table(title="largest relative difference of each module's output", width=WIDTH)
        table.add_column("module", overflow="fold")
        table.add_column("shape", overflow="fold")
        table.add_column("difference", justify="right")
        for row in self.rows:
            far = "not in the port" if row.difference is None else f"{row.difference:.0e}"
            table.add_row(Text(row.module), _shape(row.shape), far)
        return table

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        yield Text(str(self))  # no string: rich makes a picture of :100: and a style of [bold]

    def __str__(self) -> str:
        lines = [self.verdict]
        for number, difference in enumerate(self.differences, 1):
            lines += ["", *_report(number, difference)]
        lines += [""] if self.notes else []
        for note in self.notes:
            lines += _wrap("note: ", note)
        return "\n".join(lines)


def _report(number: int, difference: Difference) -> Iterator[str]:
    yield from _wrap(f"{number}. ", f"{difference.kind}: {difference.difference}")
    for reference, port in difference.before:
        yield from _wrap("   equal before  ", reference.lines()[0] + " = " + port.lines()[0])
    for name, place in (("reference", difference.reference), ("port", difference.port)):
        if place is not None:
            first, *rest = place.lines()
            yield from _wrap(f"   {name:13s} ", first)
            for line in rest:
                yield (" " * 17 + line)[:WIDTH]
    if difference.also:
        yield f"   also          at {difference.also} further calls of these lines"
    if difference.cause:
        yield from _wrap("   cause         ", difference.cause)


def _wrap(start: str, text: str) -> list[str]:
    """Lines within the width; those after the first are indented as far as the text."""
    lines, line = [], start
    for word in text.split():
        gap = "" if line.endswith(" ") else " "
        if len(line) + len(gap) + len(word) > WIDTH and line.strip() and len(line) > len(start):
            lines.append(line)
            line, gap = " " * len(start), ""
        line += gap + word
    return [*lines, line]


def _shape(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})" if shape else ""
