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
from recipe.console import UserError
from recipe.provenance import describe_machine, provenance

RESULTS = Path(__file__).parent.parent / "results"
BENCH = Path("runs") / "bench"
MACHINES = "machines.json"

Row = dict[str, Any]


@dataclass(frozen=True)
class PublishOptions:
    """Where a measuring command writes."""

    publish: bool = False
    """Add the measurements to results/, from which the pages are made."""

    def check_publishable(self, dataset: str) -> None:
        """Refuse to publish measurements on other images than MNIST.

        Raises:
            UserError: ``publish`` is set and the dataset is not MNIST.
        """
        if self.publish and dataset != "mnist":
            raise UserError("--publish needs MNIST; results/ has only measurements on MNIST")


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


def read_rows(name: str, folder: Path = RESULTS, **where: Any) -> list[Row]:
    """The measurements of one file that have all the given values, oldest first.

    Raises:
        UserError: a line is no JSON object.
    """
    path = folder / f"{name}.jsonl"
    rows = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else (), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}, is no JSON object; delete the line")
        if all(row.get(key) == value for key, value in where.items()):
            rows.append(row)
    return rows


def origin(packages: Iterable[str], folder: Path = RESULTS) -> Row:
    """`provenance`, and this machine's name in a folder's list of machines, to which it is added."""
    return provenance(packages) | {"machine": _machine_key(folder / MACHINES)}


def _machine_key(path: Path) -> str:
    """The key of this machine in a `machines.json`, which gets a new entry for a new machine."""
    try:
        content = json.loads(path.read_text()) if path.exists() else {}
        machines: dict[str, Row] = {key: dict(machine) for key, machine in content.items()}
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{path} is no list of machines in JSON; delete it, or restore it with git") from None
    current = describe_machine()
    for key, machine in machines.items():
        if machine == current:
            return key
    words = [word for word in current["processor"].replace("(R)", " ").split() if word.isalpha()]
    stem = "-".join([*words[-1:], *current["instructions"].split(), str(current["cores"])]).lower()
    key = next(name for n in range(1, 100) if (name := f"{stem}-{n}" if n > 1 else stem) not in machines)
    write_atomically(path, (json.dumps(machines | {key: current}, indent=1) + "\n").encode())
    return key
