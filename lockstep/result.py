"""What a comparison of two models found: one row a layer, the first difference, and how to print it."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.table import Table

from recipe.checkpoint import write_atomically

COLUMNS = {
    "input": "input",
    "output": "output",
    "input_gradient": "gradient\nof input",
    "parameter_gradient": "of para-\nmeters",
    "float32": "float32",
    "noise": "its noise\nfloor",
}


@dataclass
class Row:
    """One call of a pair of layers, or what belongs to no layer: ``(output)``, ``(loss)``, ``(step N)``.

    Differences are relative: norm of the difference over the norm of PyTorch's. None: not compared.
    """

    torch: str
    flax: str
    kind: str
    weights: float | None = None  # before the first step, largest of the layer's
    input: float | None = None  # when both models run freely
    free: float | None = None  # output when both run freely
    output: float | None = None  # of the layer given PyTorch's input, as everything below
    statistics: float | None = None  # after the call
    input_gradient: float | None = None
    parameter_gradient: float | None = None
    output_gradient: float | None = None  # of the loss by the layer's output, when both run freely
    float32: float | None = None  # output or gradient when both run freely in float32
    noise: float | None = None  # the same between PyTorch and itself with its weights moved by one unit
    allclose: bool | None = None  # of a model's output: what np.allclose says with 1e-3
    what: str = ""  # which of these differs: see `lockstep.models.compare`; empty if none
    where: str = ""  # in words
    cause: str = ""  # the likely one, if one was found
    # equal; different; follows: differs only because something before it does; not compared
    verdict: str = "equal"
    arrays: dict[str, np.ndarray] = field(default_factory=dict)  # to reproduce the difference with

    @property
    def name(self) -> str:
        """PyTorch's name; Flax's where PyTorch has none."""
        return self.torch or self.flax


@dataclass
class Result:
    """A comparison of two models.

    Attributes:
        rows: in the order of PyTorch's calls.
        first: the first row that differs in the order of execution: forward, loss, backward, steps.
        notes: what was not compared, and what was changed for the comparison.
    """

    rows: list[Row]
    first: Row | None
    notes: list[str]
    steps: int = 0
    floor: bool = False  # whether float32 was compared too

    @property
    def equal(self) -> bool:
        """Whether everything that was compared is equal."""
        return self.first is None

    @property
    def compared(self) -> list[Row]:
        """The rows that were compared."""
        return [row for row in self.rows if row.verdict != "not compared"]

    @property
    def verdict(self) -> str:
        """The result in a sentence or two."""
        if self.first is None:
            steps = f", and so are {self.steps} training steps" if self.steps else ""
            less = (
                " What is listed as not compared may differ." if len(self.compared) < len(self.rows) else ""
            )
            return f"equal: {len(self.compared)} of {len(self.rows)} rows are equal in float64{steps}.{less}"
        unknown = "none of those that were tried"
        lines = [f"first difference: {self.first.where}", f"likely cause: {self.first.cause or unknown}"]
        others = [row for row in self.rows if row.what not in ("", "float32") and row is not self.first]
        lines += [f"also: {row.where}; likely cause: {row.cause or unknown}" for row in others]
        return "\n".join(lines)

    def table(self) -> Table:
        """The rows as a table of rich."""
        shown = {
            key: title
            for key, title in COLUMNS.items()
            if any(getattr(r, key) is not None for r in self.rows)
        }
        table = Table(title="relative differences, PyTorch and Flax")
        for title in ("PyTorch", "Flax", "kind"):
            table.add_column(title, overflow="fold")
        for title in shown.values():
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("verdict", overflow="fold")
        for row in self.rows:
            numbers = [_format(getattr(row, key)) for key in shown]
            style = {"different": "bold red", "not compared": "dim"}.get(row.verdict)
            verdict = f"differs: {row.what}" if row.what else row.verdict
            table.add_row(row.torch, row.flax, row.kind, *numbers, verdict, style=style)
        return table

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        yield self.table()
        yield from self.notes
        yield self.verdict

    def __str__(self) -> str:
        screen = io.StringIO()
        console = Console(file=screen, width=120, highlight=False, markup=False)
        console.print(Group(self.table()))
        return screen.getvalue() + "\n".join([*self.notes, self.verdict])

    def to_json(self) -> str:
        """Everything but the arrays; a difference that is not a number (shapes differ) is ``"inf"``."""

        def plain(row: Row) -> dict[str, Any]:
            fields = {key: value for key, value in vars(row).items() if key != "arrays"}
            return {
                k: ("inf" if isinstance(v, float) and not np.isfinite(v) else v) for k, v in fields.items()
            }

        content = {
            "equal": self.equal,
            "first": None if self.first is None else plain(self.first),
            "rows": [plain(row) for row in self.rows],
            "notes": self.notes,
            "steps": self.steps,
        }
        return json.dumps(content, indent=1)

    def save_arrays(self, path: Path | str) -> None:
        """Write the arrays of the first difference as an .npz file, readable without pickle.

        Raises:
            UserError: the file cannot be written.
        """
        content = io.BytesIO()
        arrays = self.first.arrays if self.first else {}
        np.savez_compressed(content, allow_pickle=False, **arrays)
        write_atomically(Path(path), content.getvalue())


def _format(value: float | None) -> str:
    if value is None:
        return ""
    return "0" if value == 0 else f"{value:.0e}"
