"""benchmarks/gpu.sh: every command that a GPU will run, on the CPU with small numbers.

It takes many minutes and is for whoever changes the script or is about to use it.
"""

import os
import subprocess

import pytest

from tests.helpers import ROOT

pytestmark = pytest.mark.subprocess


def run(*parts: str, **variables: str) -> subprocess.CompletedProcess:
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), *parts]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.hours
@pytest.mark.parametrize("part", ["parity", "speed", "seeds"])
def test_every_command_runs(part):
    result = run(part, TRY="1", TORCHDYNAMO_DISABLE="1")
    assert result.returncode == 0, result.stderr


def test_an_unknown_part_is_refused():
    result = run("parity", "fastest")
    assert result.returncode == 2
    assert "no part fastest" in result.stderr


def test_a_command_that_fails_is_named(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 2\n")
    python.chmod(0o755)
    result = run("seeds", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert result.returncode == 1
    assert result.stderr.count("failed: benchmarks.accuracy --network") == 3
