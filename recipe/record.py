"""The record of measurements: JSON Lines that say where, when and by which command they were made.

A measuring command writes to ``runs/bench/``; only ``--publish`` adds to ``results/``, from which the pages
are made. Both folders have the same form: ``NAME.jsonl``, one measurement a line, and ``machines.json``, the
machines that the lines refer to.
"""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from recipe.errors import UserError
from recipe.files import write_atomically

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


def provenance(packages: Iterable[str]) -> Row:
    """Command, commit, date, and the versions of Python and of those packages that are installed."""
    return {
        "command": command(),
        "commit": git_commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"python": platform.python_version()} | installed_versions(packages),
    }


def command() -> str:
    """The command line of this process as a person types it, with paths relative to the working folder."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["-m", spec.name.removesuffix(".__main__")] if spec else [Path(sys.argv[0]).name]
    return shlex.join(["python", *program, *(_relative(argument) for argument in sys.argv[1:])])


def _relative(argument: str) -> str:
    """A path of this machine becomes relative to the working folder, or its name where it lies elsewhere."""
    if not argument.startswith("/"):
        return argument
    path = Path(argument)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def git_commit() -> str | None:
    """The commit of the checkout this file is in, with ``+`` where its code has changes; None without git.

    What earlier measurements added to ``results/`` is no change.
    """
    status = ["status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)results"]
    commit, changes = _git("rev-parse", "HEAD"), _git(*status)
    return commit and commit + ("+" if changes else "")


def _git(*arguments: str) -> str | None:
    """What a git command says about the checkout this file is in; None if it fails."""
    return _output_of("git", "-C", str(Path(__file__).parent), *arguments)


def _output_of(*words: str) -> str | None:
    """What a program prints; None if it is missing, fails or takes more than ten seconds."""
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def describe_machine() -> Row:
    """Processor, cores this process may use, instruction set, GPU and system."""
    return {
        "processor": processor_name(),
        "cores": count_cores(),
        "instructions": _instructions(),
        "gpu": _gpu(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def count_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    """The processor's name, as Linux gives it, or the architecture."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _instructions() -> str:
    """The widest vector or matrix instructions: the speed of a convolution depends on them."""
    flags = (_cpuinfo("flags") or "").split()
    known = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2"}
    return next((name for flag, name in known.items() if flag in flags), "")


def _cpuinfo(key: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), None)


def _gpu() -> str | None:
    """The GPUs that the NVIDIA driver names; None without a driver."""
    names = _output_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return ", ".join(names.splitlines()) if names else None


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
