"""What mutation testing reports, of a small program that mutmut really changes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.mutation import changed_lines

FILES = {
    "program/largest.py": """
def largest(numbers):
    best = numbers[0]
    for number in numbers:
        if number > best:
            best = number
    return best


def unused():
    return 1
""",
    "tests/test_largest.py": """
from program.largest import largest


def test_largest():
    assert largest([1, 3, 2]) == 3
""",
    "pyproject.toml": """
[tool.mutmut]
source_paths = ["program"]
pytest_add_cli_args_test_selection = ["tests"]
""",
}


def run(folder: Path, *more: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.mutation", "--workers", "1", "--out", "found.json", *more]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "found.json").read_text())


def test_survivors_are_counted_and_shown(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = run(tmp_path)
    fates = found["modules"]["largest"]
    assert fates["survived"] == len(found["survivors"]) >= 1
    assert fates["killed"] + fates.get("timeout", 0) >= 2
    assert fates["no tests"] >= 1
    assert ["-        if number > best:", "+        if number >= best:"] in found["survivors"].values()
    assert sum(run(tmp_path, "--only", "*largest__mutmut_1")["modules"]["largest"].values()) == 1


def test_of_a_diff_only_what_changed_is_kept():
    diff = "--- a\n+++ b\n@@ -1,3 +1,3 @@\n same\n-old\n+new\n"
    assert changed_lines(diff) == ["-old", "+new"]
