"""The record of measurements: JSON Lines that say where, when and by which command they were made.

A measuring command writes to ``runs/bench/``; only ``--publish`` adds to ``results/``, from which the pages
are made. Both folders have the same form: ``NAME.jsonl``, one measurement a line, and ``machines.json``, the
machines that the lines refer to.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.checkpoint import write_atomically
from recipe.console import UserError, option
from recipe.provenance import describe_machine, provenance

RESULTS = Path(__file__).parent.parent / "results"
BENCH = Path("runs") / "bench"
MACHINES = "machines.json"

Row = dict[str, Any]  # a measurement, or several summed up, which are then under "rows"


@dataclass(frozen=True)
class PublishOptions:
    """Where a measuring command writes."""

    publish: bool = option(False, "Add the measurements to results/, from which the pages are made")

    def check_record(self, name: str, dataset: str) -> None:
        """Find out before the work whether its measurements can be added to a file of the record.

        Raises:
            UserError: it cannot be written, or results/ would get measurements on other images than MNIST.
        """
        if self.publish and dataset != "mnist":
            raise UserError("--publish needs MNIST; results/ has only measurements on MNIST")
        add_rows(name, (), (), self.publish)


def add_rows(name: str, rows: Iterable[Row], packages: Iterable[str], publish: bool) -> Path:
    """Append measurements to a file of the record and return its path.

    Args:
        name: of the file, without its ending.
        rows: what was measured, flat; each is completed with its `origin`.
        packages: the installed packages that took part.
        publish: to ``results/`` of the checkout instead of ``runs/bench/``.

    Raises:
        UserError: it cannot be written.
    """
    folder = RESULTS if publish else BENCH
    about = origin(packages, folder)
    lines = "".join(json.dumps(about | row) + "\n" for row in rows)
    path = folder / f"{name}.jsonl"
    try:
        with path.open("a") as file:  # one short write, so two processes may append
            file.write(lines)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def read_rows(name: str, folder: Path | None = None, **where: Any) -> list[Row]:
    """The measurements of one file that have all the given values, oldest first.

    Args:
        name: of the file, without its ending.
        folder: ``results/`` unless told.
        where: values by key.

    Raises:
        UserError: a line is not a JSON object.
    """
    path = (folder or RESULTS) / f"{name}.jsonl"
    rows = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else (), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}, is not a JSON object; delete the line")
        if all(row.get(key) == value for key, value in where.items()):
            rows.append(row)
    return rows


def grouped(rows: Iterable[Row], *keys: str) -> list[list[Row]]:
    """Rows with the same values of some keys, in the order in which they first appear."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in keys), []).append(row)
    return list(groups.values())


def newest(name: str, *keys: str, **where: Any) -> list[Row]:
    """Of the rows of a file in results/ with the same values of some keys, the last one."""
    return [group[-1] for group in grouped(read_rows(name, **where), *keys)]


def machines(folder: Path | None = None) -> dict[str, Row]:
    """The machines of the measurements in a folder, ``results/`` unless told, by their keys.

    Raises:
        UserError: the list is damaged.
    """
    path = (folder or RESULTS) / MACHINES
    try:
        content = json.loads(path.read_text()) if path.exists() else {}
        return {key: dict(machine) for key, machine in content.items()}
    except (ValueError, TypeError, AttributeError):
        raise UserError(
            f"{path} is not a list of machines in JSON; delete it, or restore it with git"
        ) from None


def origin(packages: Iterable[str], folder: Path | None = None) -> Row:
    """`provenance`, and this machine's key in a folder's list of machines, to which it is added."""
    folder = folder or RESULTS
    known, current = machines(folder), describe_machine()
    keys = [key for key, machine in known.items() if machine == current]
    if not keys:
        words = [word for word in current["processor"].replace("(R)", " ").split() if word.isalpha()]
        stem = "-".join([*words[-1:], *current["instructions"].split(), str(current["cores"])]).lower()
        keys = [name for n in range(1, 100) if (name := f"{stem}-{n}" if n > 1 else stem) not in known]
        content = json.dumps(known | {keys[0]: current}, indent=1) + "\n"
        write_atomically(folder / MACHINES, content.encode())
    return provenance(packages) | {"machine": keys[0]}
