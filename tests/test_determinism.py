"""The same seed gives the same bits, with any number of threads that stays the same."""

import os
import subprocess
import sys
from functools import partial

import pytest

from recipe.checkpoint import FILE_NAME, load_checkpoint

PROCESSORS = sorted(os.sched_getaffinity(0))


def run(framework, threads, out, network="net9954", epochs=1):
    """Train as a person does, on so many processors and with as many threads."""
    words = ["--network", network, "--epochs", epochs, "--dataset", "digits", "--precision", "float32"]
    words += ["--device", "cpu", "--out", out]
    subprocess.run(
        [sys.executable, "-m", f"{framework}_impl.train", *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        preexec_fn=partial(os.sched_setaffinity, 0, PROCESSORS[:threads]),  # JAX counts these
        capture_output=True,
        check=True,
    )
    return load_checkpoint(out / FILE_NAME)


def same_bits(one, other):
    pairs = [(one.losses, other.losses), *((one.tensors[name], other.tensors[name]) for name in one.tensors)]
    return all(first.tobytes() == second.tobytes() for first, second in pairs)


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_two_runs_have_the_same_bits(framework, tmp_path):
    threads = min(2, len(PROCESSORS))
    one, other = (run(framework, threads, tmp_path / name) for name in ("one", "other"))
    assert same_bits(one, other)
