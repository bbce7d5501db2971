"""The tests and the programs that the pages name exist and work."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from recipe.checkpoint import load_checkpoint
from tests.helpers import DIGEST, ROOT

TESTS = {path.stem: path.read_text() for path in (ROOT / "tests").rglob("*.py")}
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
PROGRAMS = re.findall(r"```\n(python -m (?!pip|pytest).*?)```", (ROOT / "README.md").read_text(), re.S)
DIGEST_LINE = f"SHA-256 of the state {DIGEST}\n"
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


def test_the_programs_for_a_checkpoint_work(real_runs, tmp_path, monkeypatch):
    """Those of models/README.md, in order: PyTorch, Flax, and the tensors alone."""
    checkpoint = getattr(real_runs["jax"], "checkpoint", real_runs["jax"])
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "net9808-torch").symlink_to(checkpoint.parent)
    monkeypatch.chdir(tmp_path)
    programs = re.findall(r"```python\n(.*?)```", (ROOT / "models" / "README.md").read_text(), re.DOTALL)[-3:]
    results = [{} for _ in programs]
    for program, result in zip(programs, results, strict=True):
        exec(program, result)
    torch, jax, alone = results
    assert len(torch["digit"]) == len(jax["digit"]) == 1
    expected = load_checkpoint(checkpoint).model
    assert alone["weights"].keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(alone["weights"][name], tensor)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 900


def test_readme_installs_what_there_is():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = re.findall(r"'\.\[([\w,]+)\]'", (ROOT / "README.md").read_text())
    extras = {extra for each in asked for extra in each.split(",")}
    assert "all" in extras and extras <= set(project["optional-dependencies"])


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.parametrize("block", PROGRAMS)
def test_the_commands_in_readme_do_what_it_says(block, tmp_path):
    """Each block in a folder of its own, as it stands."""
    pair = re.search(
        r"```python\n(import numpy as np\n.*?)```", (ROOT / "docs" / "porting.md").read_text(), re.S
    )
    assert pair
    (tmp_path / "pair.py").write_text(pair[1])
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    run = subprocess.run(
        ["bash", "-ec", block], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    said = {"--precision bitwise": 2 * DIGEST_LINE, "pair.py": "different", "--max-steps": "mine.onnx"}
    (words,) = (words for command, words in said.items() if command in block)
    shown = "".join(line for line in run.stdout.splitlines(True) if line == DIGEST_LINE) or run.stdout
    assert run.returncode == ("pair.py" in block), run.stderr
    assert words in shown
