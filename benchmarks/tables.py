"""Tables in Markdown, with where and when their numbers were measured."""

import re
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.record import Row, grouped, machines
from recipe import console

LABELS = {"torch-script": "PyTorch script", "torch": "PyTorch", "jax-script": "Flax script", "jax": "Flax"}
PACKAGES = ("torch", "jax", "flax", "onnx", "onnxruntime", "openvino")  # a caption shows their versions


def make_table(header: str, line: str, rows: Sequence[Row], command: str = "") -> str:
    """A table in Markdown; below it where its rows were measured, and the command that measures them again.

    Args:
        header: headings, with `` | `` between them.
        line: the format of a row, with the names of its values; None becomes an empty cell.
        rows: at least one; a row that sums up several has them under "rows".
        command: without ``python -m``; none if every row names its own.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError(f"results/ has no measurement for the table with the columns {header}")
    lines = [_format(line, row) for row in rows]
    columns = zip(*(text.split(" | ") for text in lines), strict=True)
    rule = [
        "---:" if all(re.match(r"[+*-]*\d|not |$", cell) for cell in column) else "---" for column in columns
    ]
    markdown = "\n".join(f"| {text} |" for text in (header, " | ".join(rule), *lines))
    again = f" Again: `python -m {command}`." if command else ""
    return f"{markdown}\n\n{describe_origin(rows)}{again}"


def _format(line: str, row: Row) -> str:
    return line.format_map({key: _Cell(value) for key, value in row.items()})


class _Cell:
    """A value in a format; None is empty in any."""

    def __init__(self, value: object):
        self.value = value

    def __format__(self, form: str) -> str:
        return "" if self.value is None else format(self.value, form)


def describe_origin(rows: Sequence[Row]) -> str:
    """Where, when and with which versions some rows were measured."""
    measurements = [each for row in rows for each in row.get("rows", [row])]
    pairs = ((name, row["versions"].get(name)) for name in PACKAGES for row in measurements)
    versions = dict.fromkeys(f"{name} {version}" for name, version in pairs if version)
    places = []
    for group in grouped(measurements, "machine"):
        dates = ", ".join(sorted({row["date"] for row in group}))
        places.append(f"{describe_machine(group[0]['machine'])} ({dates})")
    return f"Measured on {'; '.join([*places, *versions])}."


def describe_machine(key: str) -> str:
    """A machine of machines.json in words."""
    machine = machines()[key]
    name = machine["processor"].replace("(R)", "").removesuffix(" Processor")
    return (
        machine["gpu"] or f"{name} with {machine['instructions']}, {console.count(machine['cores'], 'core')}"
    )


def show_table(title: str, header: str, line: str, rows: Sequence[Row]) -> None:
    """Print rows; header and line as in `make_table`, and the first column to the left."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in header.split("|"):
        table.add_column(heading.strip(), justify="right" if table.columns else "left")
    for row in rows:
        table.add_row(*_format(line, row).translate({ord(mark): None for mark in "`*"}).split(" | "))
    console.screen.print(table)
