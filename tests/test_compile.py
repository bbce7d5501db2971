"""What makes PyTorch's steps faster: the compiler, which changes nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import ROOT


@pytest.mark.slow
@pytest.mark.subprocess
def test_without_a_compiler_pytorch_says_so_once_and_goes_on(tmp_path):
    program = (
        "import torch; from torch_impl.loop import compile_if_possible; "
        "double = compile_if_possible(lambda x: 2 * x); "
        "print(double(torch.ones(3)).tolist(), double(torch.zeros(3)).tolist())"
    )
    lacking = {"TORCHDYNAMO_DISABLE": "0", "PATH": str(tmp_path), "CXX": "no-such-compiler"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | lacking | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    notice, result = done.stdout.splitlines()
    assert notice.startswith("torch.compile does not work here, training goes on without it: ")
    assert result == "[2.0, 2.0, 2.0] [0.0, 0.0, 0.0]"


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.skipif(not any(Path(p, "g++").exists() for p in os.environ["PATH"].split(":")), reason="no g++")
def test_the_compiled_step_is_the_eager_one(tmp_path):
    arguments = ["--dataset", "digits", "--network", "net9954", "--max-steps", "3", "--precision", "float64"]
    for name, disable in (("compiled", "0"), ("eager", "1")):
        done = subprocess.run(
            [sys.executable, "-m", "torch_impl.train", *arguments, "--out", str(tmp_path / name)],
            env=os.environ | {"TORCHDYNAMO_DISABLE": disable},
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        assert "torch.compile does not work" not in done.stdout
    losses = [np.load(tmp_path / name / "losses.npy") for name in ("compiled", "eager")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-12)
