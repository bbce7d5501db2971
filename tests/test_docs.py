"""The tests that the pages name exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTS = {path.stem: path.read_text() for path in (ROOT / "tests").rglob("*.py")}
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_tests_that_exist(page):
    names = set(re.findall(r"\btest_\w+", (ROOT / "docs" / page).read_text()))
    unknown = [name for name in names if name not in TESTS and f"def {name}" not in "".join(TESTS.values())]
    assert not unknown


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_the_file_that_has_the_test(page):
    for file, name in re.findall(r"\b(test_\w+)\.py::(test_\w+)", (ROOT / "docs" / page).read_text()):
        assert f"def {name}(" in TESTS[file], f"{file}.py::{name}"
