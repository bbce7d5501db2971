"""What mutation testing reports, of a small program that mutmut really changes."""

import json
import subprocess
import sys

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


def test_survivors_are_counted_and_shown(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", "benchmarks.mutation", "--workers", "1", "--out", "found.json"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=300, check=True)
    found = json.loads((tmp_path / "found.json").read_text())
    fates = found["modules"]["largest"]
    assert fates["survived"] == len(found["survivors"]) >= 1
    assert fates["killed"] >= 2
    assert fates["no tests"] >= 1
    assert ["-        if number > best:", "+        if number >= best:"] in found["survivors"].values()


def test_of_a_diff_only_what_changed_is_kept():
    diff = "--- a\n+++ b\n@@ -1,3 +1,3 @@\n same\n-old\n+new\n"
    assert changed_lines(diff) == ["-old", "+new"]
