"""Both trainers on the bundled digits: they learn, resume to the bit, go on in each other, end by Ctrl-C."""

import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from recipe.checkpoint import load_checkpoint
from recipe.console import UserError
from tests.helpers import LINE, PER_EPOCH, ROOT, TRAINERS, go_on, train_digits


def test_layers_are_shown_if_asked(tmp_path, capsys):
    train_digits("torch", tmp_path / "run", network=LINE, max_steps=1, layers=True)
    assert "no fully connected layer" in capsys.readouterr().out


def test_a_run_learns(framework, real_runs):
    checkpoint = load_checkpoint(real_runs[framework].checkpoint)
    assert checkpoint.step == 2 * PER_EPOCH
    assert checkpoint.losses[-4:].mean() < checkpoint.losses[:4].mean() - 0.3
    assert 0.15 < checkpoint.metrics[-1].train_accuracy < 1
    assert 0.15 < checkpoint.metrics[-1].val_accuracy < 1
    assert checkpoint.config.device == "cpu"
    assert checkpoint.config.versions.keys() >= {"numpy", framework}
    printed = real_runs[framework].printed
    for expected in ("net9954 (9,954 parameters)", f"{framework} on cpu, digits, tuned, float32"):
        assert expected in printed


def test_resuming_is_bit_identical_to_never_having_stopped(framework, tmp_path):
    whole = load_checkpoint(train_digits(framework, tmp_path / "whole", network=LINE))
    path = train_digits(framework, tmp_path / "parts", network=LINE, max_steps=PER_EPOCH // 2)  # mid-epoch
    go_on(framework, resume=path.parent)
    resumed = load_checkpoint(path)
    np.testing.assert_array_equal(resumed.losses, whole.losses)
    assert resumed.tensors.keys() == whole.tensors.keys()
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(resumed.tensors[name], tensor, err_msg=name)
    assert [entry.step for entry in resumed.metrics] == [5, 10, 20]
    assert resumed.metrics[-1].val_loss == whole.metrics[-1].val_loss


@pytest.fixture(scope="module")
def float64_runs(tmp_path_factory):
    """By framework of the first eight steps and of the next eight: four runs that should be one."""
    runs = {}
    for first in TRAINERS:
        folder = tmp_path_factory.mktemp(first)
        options = {"network": LINE, "batch": 64, "epochs": 1, "max_steps": 8, "precision": "float64"}
        half = train_digits(first, folder / "half", **options)
        for second in TRAINERS:
            go_on(second, resume=half, out=folder / second, max_steps=16)
            runs[first, second] = load_checkpoint(folder / second / half.name)
    return runs


@pytest.mark.parametrize(("first", "second"), [("torch", "jax"), ("jax", "torch")])
def test_a_run_goes_on_in_the_other_framework(first, second, float64_runs):
    """In float64, against a whole run in either: losses within 1e-10, each tensor within 1e-9 of its norm."""
    mixed = float64_runs[first, second]
    assert mixed.config.framework == second
    for whole in (float64_runs["torch", "torch"], float64_runs["jax", "jax"]):
        np.testing.assert_allclose(mixed.losses, whole.losses, rtol=0, atol=1e-10)
        for name, tensor in whole.tensors.items():
            difference = np.linalg.norm((mixed.tensors[name] - tensor).ravel())
            assert difference <= 1e-9 * np.linalg.norm(tensor.ravel()), name
        assert mixed.metrics[-1].val_accuracy == whole.metrics[-1].val_accuracy


def test_a_device_that_is_not_there_is_named(framework, tmp_path):
    if shutil.which("nvidia-smi"):
        pytest.skip("there is a GPU here")
    with pytest.raises(
        UserError, match=r"--device cuda: .* sees no CUDA device here; use --device cpu or auto"
    ):
        train_digits(framework, tmp_path / "run", device="cuda")
    assert not (tmp_path / "run").exists(), "nothing is left behind"


@pytest.mark.slow
@pytest.mark.subprocess
def test_control_c_ends_a_program_with_what_it_had(framework, tmp_path):
    arguments = ["--dataset", "digits", "--network", "net9954", "--epochs", "500", "--out", tmp_path / "run"]
    # A shell that started the tests in the background has told its children to ignore Ctrl-C.
    listen = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    start = f"runpy.run_module('{framework}_impl.train', run_name='__main__', alter_sys=True)"
    process = subprocess.Popen(
        [sys.executable, "-c", listen + start, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    path = tmp_path / "run" / "checkpoint.safetensors"
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert "interrupted; kept:" in output
    assert load_checkpoint(path).step > 0
    assert (tmp_path / "run" / "curves.png").exists()
