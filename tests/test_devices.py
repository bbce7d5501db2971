"""--devices N: the run of one device, on several; what a process does that has lost another."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lockstep.runs import relative_difference
from recipe.checkpoint import FILE_NAME, load_checkpoint
from recipe.console import UserError
from recipe.plan import make_plan
from recipe.run import TrainOptions, prepare
from tests import device_steps, fake
from tests.helpers import BITWISE, DEVICES, DIGEST, ROOT, TINY, TINY_RECIPE, TRAINERS, train_digits

LOSS_BOUND, TENSOR_BOUND = 1e-12, 1e-10  # float64 rounds at 1e-16; the faults give 1e-4 and more
MINUTE = 60
SHORT = ["--device", "cpu", "--network", "net9954", "--dataset", "digits", "--epochs", "2"]
SHORT += ["--precision", "bitwise"]
LONG = [*SHORT[:-3], "23", *SHORT[-2:]]  # 506 steps
LONG_DIGEST = "14a2aebc408cb8a45cc19e65888090295ab455726ed3d49ee671e6205886e2ac"
FREE_PORT = 29_517  # of JAX's coordinator in these tests

pytestmark = pytest.mark.subprocess


def test_the_shares_of_a_plan_are_its_batches():
    plan = make_plan(TINY, TINY_RECIPE, 0, 640, 0, 10)
    shares = [plan.share(device, 4) for device in range(4)]
    for name in ("indices", "affine"):
        parts = [getattr(share, name) for share in shares]
        assert {part.shape[1] for part in parts} == {16}
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), getattr(plan, name))
    np.testing.assert_array_equal(shares[3].dropout_keys, plan.dropout_keys)


def take_steps(framework: str, devices: int, folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Losses and tensors after a few steps on several devices, by fault."""
    command = [sys.executable, "-m", "tests.device_steps", framework, str(devices), str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return {path.stem: dict(np.load(path)) for path in folder.glob("*.npz")}


@pytest.fixture(scope="module", params=TRAINERS)
def steps(request, tmp_path_factory):
    """The framework's name, the steps on one device, and those on two by fault."""
    folder = tmp_path_factory.mktemp(request.param) / "two"
    return (
        request.param,
        device_steps.train(request.param, DEVICES[request.param].select_devices("cpu")),
        take_steps(request.param, 2, folder),
    )


def differences(run, reference):
    """The largest difference of a loss, and the largest of a tensor, relative to its norm."""
    assert run.keys() == reference.keys()
    loss = np.abs(run["losses"] - reference["losses"]).max()
    tensors = run.keys() - {"losses", "correct"}
    return loss, max(relative_difference(run[name], reference[name]) for name in tensors)


@pytest.mark.slow
def test_two_devices_take_the_steps_of_one(steps):
    _, one, two = steps
    loss, tensor = differences(two["none"], one)
    assert loss <= LOSS_BOUND and tensor <= TENSOR_BOUND
    np.testing.assert_array_equal(two["none"]["correct"], one["correct"])


@pytest.mark.slow
@pytest.mark.parametrize("fault", sorted(device_steps.FAULTS.keys() - {"none"}))
def test_a_deliberate_fault_is_found(steps, fault):
    framework, one, two = steps
    if (framework, fault) == ("jax", "unequal_shares"):
        pytest.skip("sharding makes equal shares")
    loss, tensor = differences(two[fault], one)
    assert max(loss / LOSS_BOUND, tensor / TENSOR_BOUND) > 1000


def test_a_batch_that_the_devices_do_not_divide_is_refused():
    with pytest.raises(UserError, match="--devices 3 does not divide the batch of 128 images"):
        prepare(TrainOptions(**fake.OPTIONS | {"devices": 3}), fake.Trainer)


def start(framework: str, *arguments: str, run: list[str] = SHORT, **variables: str) -> subprocess.Popen:
    """Train in a process of its own, in PyTorch eagerly if the variables do not say otherwise."""
    return subprocess.Popen(
        [sys.executable, "-m", f"{framework}_impl.train", *run, *arguments],
        cwd=ROOT,
        env={name: text for name, text in os.environ.items() if name != "OMP_NUM_THREADS"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def check_digest(out: Path) -> None:
    assert load_checkpoint(out / FILE_NAME).metrics[-1].digest == DIGEST


@pytest.mark.slow
@pytest.mark.parametrize("framework", TRAINERS)
def test_two_devices_end_in_the_bits_of_one(framework, tmp_path):
    process = start(framework, "--devices", "2", "--out", str(tmp_path / "run"))
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    check_digest(tmp_path / "run")
    assert output.count("final validation accuracy") == 1  # only the first process reports
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_run_that_loses_a_process_says_so_and_goes_on_with_one_device(killed, tmp_path):
    """The launcher ends the first process when the second is lost, often before that one has noticed."""
    out = tmp_path / "run"
    launcher = start("torch", "--devices", "2", "--out", str(out))
    wait_for(out / FILE_NAME, launcher)
    children = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[-2:][killed]), signal.SIGKILL)
    _, errors = launcher.communicate(timeout=MINUTE)
    assert launcher.returncode == 2
    assert len(errors.splitlines()) == 1, errors
    line = errors.strip()
    by_launcher = "error: a process of this run was killed, and the run ended; "
    by_first = "error: another process of this run has ended, and the run with it; "
    step = load_checkpoint(out / FILE_NAME).step
    kept = f"kept: {out / FILE_NAME} at step {step}; go on with --resume {out}"
    assert line in (by_launcher + kept, by_first + kept)
    train_digits("jax", out, **BITWISE, resume=out)
    check_digest(out)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def start_two(tmp_path: Path, run: list[str] = SHORT) -> list[subprocess.Popen]:
    """Two processes of JAX with one device each."""
    variables = {"JAX_COORDINATOR_ADDRESS": f"localhost:{FREE_PORT}", "JAX_NUM_PROCESSES": "2"}
    return [
        start("jax", "--devices", "2", "--out", f"{tmp_path}/run", run=run, JAX_PROCESS_ID=n, **variables)
        for n in "01"
    ]


@pytest.mark.slow
def test_two_processes_of_jax_end_in_the_bits_of_one(tmp_path):
    for process in start_two(tmp_path):
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    check_digest(tmp_path / "run")


def run_whole(framework: str, out: Path, *arguments: str, **variables: str) -> None:
    process = start(framework, "--out", str(out), *arguments, run=LONG, **variables)
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def run_with_instructions(out: Path, **variables: str) -> None:
    """Inductor's cache would give the code that it holds for other instructions, which then crashes."""
    run_whole("torch", out, **COMPILED, **variables, TORCHINDUCTOR_CACHE_DIR=str(out.parent / "inductor"))


def run_in_two_processes(out: Path) -> None:
    for process in start_two(out.parent, LONG):
        _, errors = process.communicate()
        assert process.returncode == 0, errors


def go_on(framework: str, out: Path) -> None:
    train_digits(framework, out, **BITWISE | {"epochs": None, "resume": out})


def stop_and_resume(first: str, second: str, out: Path) -> None:
    run_whole(first, out, "--max-steps", "250")
    go_on(second, out)


def kill_and_resume(framework: str, out: Path) -> None:
    process = start(framework, "--out", str(out), run=LONG)
    wait_for(out / FILE_NAME, process)
    process.kill()
    process.communicate()
    go_on(framework, out)


COMPILED = {"TORCHDYNAMO_DISABLE": "0"}
# The vector instructions of other processors: ATen's, oneDNN's (Inductor follows ATen's) and XLA's.
TORCH_AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
TORCH_SSE = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
# Ways to train the same 506 steps.
WAYS = {
    "PyTorch": lambda out: run_whole("torch", out, **COMPILED),
    "PyTorch, eager": lambda out: run_whole("torch", out),
    "PyTorch, 1 thread": lambda out: run_whole("torch", out, OMP_NUM_THREADS="1", **COMPILED),
    "PyTorch, 2 threads": lambda out: run_whole("torch", out, OMP_NUM_THREADS="2", **COMPILED),
    "PyTorch, AVX2": lambda out: run_with_instructions(out, **TORCH_AVX2),
    "PyTorch, SSE": lambda out: run_with_instructions(out, **TORCH_SSE),
    "PyTorch, 2 devices": lambda out: run_whole("torch", out, "--devices", "2", **COMPILED),
    "PyTorch, 4 devices": lambda out: run_whole("torch", out, "--devices", "4"),
    "PyTorch, stopped and resumed": lambda out: stop_and_resume("torch", "torch", out),
    "PyTorch, killed and resumed": lambda out: kill_and_resume("torch", out),
    "first half PyTorch, second half Flax": lambda out: stop_and_resume("torch", "jax", out),
    "first half Flax, second half PyTorch": lambda out: stop_and_resume("jax", "torch", out),
    "Flax": lambda out: run_whole("jax", out),
    "Flax, one core": lambda out: run_whole("jax", out, XLA_FLAGS="--xla_cpu_multi_thread_eigen=false"),
    "Flax, AVX2": lambda out: run_whole("jax", out, XLA_FLAGS="--xla_cpu_max_isa=AVX2"),
    "Flax, SSE": lambda out: run_whole("jax", out, XLA_FLAGS="--xla_cpu_max_isa=SSE4_2"),
    "Flax, 2 devices": lambda out: run_whole("jax", out, "--devices", "2"),
    "Flax, 4 devices": lambda out: run_whole("jax", out, "--devices", "4"),
    "Flax, 2 processes": run_in_two_processes,
    "Flax, killed and resumed": lambda out: kill_and_resume("jax", out),
}


@pytest.mark.slow
@pytest.mark.hours
@pytest.mark.parametrize("way", WAYS)
def test_506_steps_end_in_one_digest(way, tmp_path):
    out = tmp_path / "run"
    WAYS[way](out)
    checkpoint = load_checkpoint(out / FILE_NAME)
    assert checkpoint.step == 506
    assert checkpoint.metrics[-1].digest == LONG_DIGEST
