"""How much of the code the tests run: ``python -m benchmarks.coverage --help``.

README's test command under coverage.py, set up in pyproject.toml to follow the programs that tests start.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import write_result
from benchmarks.tables import ROOT
from recipe import report
from recipe.errors import UserError
from recipe.options import run_command

PACKAGES = ("recipe", "torch_impl", "jax_impl", "export", "benchmarks")
COUNTS = ("num_statements", "covered_lines", "num_branches", "covered_branches")  # coverage.py's names


@dataclass(frozen=True)
class CoverageOptions:
    """Run the tests and count the lines and branches that they reach."""

    tests: tuple[str, ...] = ()
    """Only these files or tests (all but the slow ones if not given)."""
    out: Path = Path("results/reliability-coverage.json")
    """Result file."""


def summarise(files: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Lines and branches, and how many of them were run, of each package, from coverage.py's report."""
    packages: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(COUNTS, 0))
    for path, found in files.items():
        package = packages[Path(path).parts[0]]
        for count in COUNTS:
            package[count] += found["summary"][count]
    return dict(packages)


def main(options: CoverageOptions) -> None:
    """Run the tests and write the counts.

    Raises:
        UserError: a test failed.
    """
    with tempfile.TemporaryDirectory(prefix="lockstep-") as folder:
        path = Path(folder) / "coverage.json"
        measured = [f"--cov={package}" for package in PACKAGES]
        command = [sys.executable, "-m", "pytest", *measured, f"--cov-report=json:{path}", *options.tests]
        # Data of its own: pytest-cov begins by deleting what is there, which may be of a run around this one.
        surroundings = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
        environment = surroundings | {"COVERAGE_FILE": str(Path(folder) / "data")}
        if code := subprocess.run(command, cwd=ROOT, env=environment).returncode:
            raise UserError(f"pytest ended with {code}; what it said stands above")
        found = {"packages": summarise(json.loads(path.read_text())["files"])}
    write_result(options.out, found)
    report.show_line(f"-> {options.out}")


if __name__ == "__main__":
    run_command(CoverageOptions, main, "python -m benchmarks.coverage")
