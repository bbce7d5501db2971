"""Mutation testing of `recipe/`: ``python -m benchmarks.mutation --help``.

mutmut, set up in pyproject.toml, changes one thing at a time in a copy of the code, in the folder
``mutants``, and sees whether a test notices. A change is called a mutant; one that no test noticed, a
survivor.
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.machine import write_result
from recipe import report
from recipe.errors import UserError
from recipe.options import check_range, run_command

FOLDER = Path("mutants")  # mutmut's, under the folder it runs in


@dataclass(frozen=True)
class MutationOptions:
    """Change `recipe/` in one place at a time and count what the tests notice."""

    only: tuple[str, ...] = ()
    """Which mutants, by patterns of their names: mutmut numbers each function's, so '*5' is about a tenth.
    Without, all that were not tested before in the folder ``mutants``; remove it when tests have changed."""
    workers: int = 2
    """Mutants to test at once."""
    out: Path = Path("results/reliability-mutation.json")
    """Result file."""


def read_fates(folder: Path, patterns: Sequence[str] = ()) -> dict[str, dict[str, str]]:
    """What became of the mutants that match, such as "killed" or "survived", by module and name."""
    from mutmut.stats import status_by_exit_code

    fates = {}
    for path in sorted(folder.glob("*/*.py.meta")):
        exit_codes = json.loads(path.read_text())["exit_code_by_key"]
        names = [name for name in exit_codes if not patterns or any(fnmatch(name, each) for each in patterns)]
        if names:
            fates[path.name.removesuffix(".py.meta")] = {
                name: status_by_exit_code[exit_codes[name]] for name in names
            }
    return fates


def describe_survivors(fates: dict[str, dict[str, str]]) -> dict[str, list[str]]:
    """The changed lines of every mutant that no test noticed."""
    from mutmut.mutation.diff_apply import get_diff_for_mutant

    names = [name for found in fates.values() for name, fate in found.items() if fate == "survived"]
    return {name: changed_lines(get_diff_for_mutant(name)) for name in names}


def changed_lines(diff: str) -> list[str]:
    """The lines of a unified diff that were taken away or added."""
    lines = diff.splitlines()
    return [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]


def summarise(fates: dict[str, dict[str, str]]) -> dict[str, Any]:
    """How many mutants of each module met which fate."""
    return {"modules": {module: dict(Counter(found.values())) for module, found in fates.items()}}


def main(options: MutationOptions) -> None:
    """Run mutmut and write what it found.

    Raises:
        UserError: a faulty option, mutmut is not installed, no mutant matches, or the tests fail without any.
    """
    check_range("--workers", options.workers, 1, 1024)
    if find_spec("mutmut") is None:
        raise UserError("mutmut is not installed: pip install -e '.[test]'")
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(options.workers), *options.only]
    if code := subprocess.run(command).returncode:
        raise UserError(f"mutmut ended with {code}; what it said stands above")
    fates = read_fates(FOLDER, options.only)
    write_result(options.out, summarise(fates) | {"survivors": describe_survivors(fates)})
    report.show_line(f"-> {options.out}")


if __name__ == "__main__":
    run_command(MutationOptions, main, "python -m benchmarks.mutation")
