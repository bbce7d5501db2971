"""A reference recorded without JAX and compared without PyTorch: what one process with both finds.

The environments hold what pyproject.toml says of the extras and nothing else, linked from this one.
"""

import json
import os
import subprocess
import sys
import tomllib
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = [pytest.mark.slow, pytest.mark.subprocess]
ROOT = Path(__file__).parent.parent
PAIR = Path(__file__).parent / "environments_pair.py"
EQUAL, DIFFERENT = 0, 1


def required(texts: list[str], extras: frozenset[str] = frozenset(), known: set | None = None) -> set[str]:
    """The names of distributions that requirements need, and those that these need."""
    known = set() if known is None else known
    for requirement in map(Requirement, texts):
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in (extras or {""})):
            continue
        key = (requirement.name.lower().replace("_", "-"), frozenset(requirement.extras))
        if key not in known:
            known.add(key)
            required(distribution(requirement.name).requires or [], key[1], known)
    return {name for name, _ in known}


def make_environment(folder: Path, extra: str) -> Path:
    """A virtual environment with the base and one extra; returns its Python."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    site = next(folder.glob("lib/python*/site-packages"))
    for name in required(project["dependencies"] + project["optional-dependencies"][extra]):
        for file in distribution(name).files or []:
            top = site / file.parts[0]
            if file.parts[0] not in ("..", "__pycache__") and not top.exists():
                top.symlink_to(
                    Path(str(file.locate())).parents[len(file.parts) - 2]
                    if len(file.parts) > 1
                    else file.locate()
                )
    return python


def run(python: Path | str, *words: str, fault: str = "", code: int = EQUAL) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    environment |= {"PYTHONPATH": str(ROOT), "FAULT": fault, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([str(python), *words], capture_output=True, text=True, env=environment)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def environments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("environments")
    pythons = {extra: make_environment(folder / extra, extra) for extra in ("torch", "jax")}
    for extra, other in (("torch", "jax"), ("jax", "torch")):
        run(pythons[extra], "-c", f"import {extra}")
        run(pythons[extra], "-c", f"import {other}", code=1)
    recorded = folder / "reference.safetensors"
    run(pythons["torch"], "-m", "lockstep", "record", str(PAIR), "--out", str(recorded))
    return pythons["jax"], recorded


@pytest.mark.parametrize("fault", ["", "padding", "decay"])
def test_two_environments_find_what_one_finds(environments, tmp_path, fault):
    python, recorded = environments
    found = []
    for name, command in (("two", [python, "-m", "lockstep"]), ("one", [sys.executable, "-m", "lockstep"])):
        path = tmp_path / f"{name}.json"
        words = [str(PAIR), "--json", str(path)] + (["--reference", str(recorded)] if name == "two" else [])
        run(*command, *words, fault=fault, code=DIFFERENT if fault else EQUAL)
        found.append(json.loads(path.read_text()))
    for key in ("equal", "verdict", "differences"):
        assert found[0][key] == found[1][key]
