"""The tests and the programs that the pages name exist and work."""

import re
from pathlib import Path

import numpy as np
import pytest

from recipe.checkpoint import load_checkpoint

ROOT = Path(__file__).parent.parent
TESTS = {path.stem: path.read_text() for path in (ROOT / "tests").rglob("*.py")}
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/README.md")]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_tests_that_exist(page):
    text = (ROOT / "docs" / page).read_text()
    for file, name in re.findall(r"\b(test_\w+)\.py::(test_\w+)", text):
        assert f"def {name}(" in TESTS[file], f"{file}.py::{name}"
    everything = "".join(TESTS.values())
    names = set(re.findall(r"\btest_\w+", text))
    assert not [name for name in names if name not in TESTS and f"def {name}" not in everything]


def test_the_commands_that_the_documents_name_exist():
    modules = {
        name
        for document in DOCUMENTS
        for name in re.findall(r"python -m ([\w.]+)", document.read_text())
        if not name.startswith(("pytest", "pip", "http", "venv", "twine"))
    }
    assert len(modules) > 5
    for name in modules:
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), name


def test_the_programs_in_readme_work(real_runs, tmp_path, monkeypatch):
    """In order: PyTorch, Flax, and the tensors alone."""
    checkpoint = getattr(real_runs["jax"], "checkpoint", real_runs["jax"])
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(checkpoint.parent)
    monkeypatch.chdir(tmp_path)
    programs = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    results = [{} for _ in programs]
    for program, result in zip(programs, results, strict=True):
        exec(program, result)
    torch, jax, alone = results
    assert len(torch["digit"]) == len(jax["digit"]) == 1
    expected = load_checkpoint(checkpoint).model
    assert alone["weights"].keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(alone["weights"][name], tensor)
