"""The tests that the pages name exist; README's programs work."""

import re
from pathlib import Path

import numpy as np
import pytest

from recipe.checkpoint import load_checkpoint

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


def test_the_programs_in_readme_work(real_runs, tmp_path, monkeypatch):
    """In order: PyTorch, Flax, and the tensors alone."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(real_runs["jax"].checkpoint.parent)
    monkeypatch.chdir(tmp_path)
    programs = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    results = [{} for _ in programs]
    for program, result in zip(programs, results, strict=True):
        exec(program, result)
    torch, jax, alone = results
    assert len(torch["digit"]) == len(jax["digit"]) == 1
    expected = load_checkpoint(real_runs["jax"].checkpoint).model
    assert alone["weights"].keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(alone["weights"][name], tensor)
