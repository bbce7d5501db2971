"""What makes PyTorch's steps faster: the compiler, and not more threads than there are free cores."""

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from tests.helpers import ROOT
from torch_impl import compile


@pytest.mark.parametrize("error", [TorchDynamoException, RuntimeError])
def test_where_compiling_fails_it_says_so_once_and_goes_on(error, monkeypatch, capsys):
    def fail(*_):
        raise error("no compiler\nhere")

    monkeypatch.setattr(torch, "compile", lambda function, dynamic: fail)
    double = compile.compile_if_possible(lambda x: 2 * x)
    assert [double(1), double(2)] == [2, 4]
    notice = "torch.compile does not work here, training goes on without it: no compiler\n"
    assert capsys.readouterr().out == notice


@pytest.mark.slow
@pytest.mark.subprocess
def test_without_a_compiler_pytorch_says_so_once_and_goes_on(tmp_path):
    program = (
        "import torch; from torch_impl.compile import compile_if_possible; "
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


@pytest.mark.parametrize(
    ("cores", "busy", "trainings", "threads"),
    [
        (2, 0.2, 0, None),
        (2, 0.9, 0, 1),
        (4, 1.1, 0, 3),
        (4, 9, 0, 1),
        (1, 1, 0, None),
        (2, 0, 1, 1),
        (16, 1, 1, 8),
        (16, 12, 1, 4),
        (2, 0, 5, 1),
    ],
)
def test_pytorch_takes_the_cores_that_are_free(cores, busy, trainings, threads, monkeypatch, capsys):
    taken, seconds = [], iter((100.0, 100.0 + busy * compile.SAMPLE_SECONDS))
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(compile, "_busy_seconds", lambda _: next(seconds))
    monkeypatch.setattr(compile, "_count_trainings", lambda _: trainings)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    compile.share_cores.__wrapped__()
    assert taken == [threads] * bool(threads)
    printed = capsys.readouterr().out
    assert (f"share {cores} cores, so PyTorch takes {threads} thread" in printed) == bool(threads)


@pytest.mark.subprocess
def test_trainings_are_found_in_the_list_of_processes(tmp_path, monkeypatch):
    """From their start on, before they have imported a framework; a program that only starts one is none."""
    (tmp_path / "waits.py").write_text("input()")
    monkeypatch.setattr(compile, "TRAININGS", [[b"-m", b"waits"]])
    cores = os.sched_getaffinity(0)
    command = [sys.executable, "-m", "waits", "--seed", "1"]
    for arguments, found in (command, True), (["env", "sleep", "9", *command], False):
        with subprocess.Popen(arguments, cwd=tmp_path, stdin=subprocess.PIPE) as process:
            end = time.monotonic() + (10 if found else 0.5)
            while not (seen := compile._count_trainings(cores)) and time.monotonic() < end:
                pass
            assert seen == found
            assert compile._count_trainings({10**6}) == 0
            process.kill()


@pytest.mark.parametrize(
    ("others", "threads", "notices"),
    [
        ([0] * 6, 2, 0),
        ([0.9] * 6, 2, 1),
        ([0.9, 0, 0.9, 0, 0.9, 0], 2, 0),
        ([0, 0, 1, 1, 1, 1], 2, 1),
        ([1] * 6, 1, 0),
        ([1] * 6, 3, 0),
        ([2.9] * 6, 2, 1),
    ],
)
def test_a_run_says_once_that_others_take_its_cores(others, threads, notices, monkeypatch, capsys):
    """Looks are ten seconds apart, and two in a row decide."""
    cores = 2 if threads == 2 and max(others) < 2 else 4
    busy, looks = 100.0, iter(others)

    def used(_):
        nonlocal busy
        busy += 10 * next(looks)
        return busy

    clock = iter(range(1000, 2000, 5))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(compile, "_own_cores", lambda: set(range(cores)))
    monkeypatch.setattr(compile, "_busy_seconds", used)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(time, "process_time", lambda: 0.0)
    steps = []
    step = compile.watch_cores(lambda: steps.append(1))
    for _ in range(9):
        step()
    assert len(steps) == 9
    printed = capsys.readouterr().out
    assert printed.count("OMP_NUM_THREADS=1 and --resume") == notices == printed.count("\n")


def test_a_process_that_waits_for_its_turn_is_not_watched(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())

    def step():
        pass

    assert compile.watch_cores(step) is step


def test_a_number_of_threads_that_is_given_stays(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: pytest.fail("it was changed"))
    compile.share_cores.__wrapped__()


def test_busy_seconds_are_those_of_these_cores():
    cores = os.sched_getaffinity(0)
    before, began = compile._busy_seconds(cores), time.process_time()
    while time.process_time() < began + 0.2:
        pass
    assert compile._busy_seconds(cores) - before > 0.1
    assert compile._busy_seconds({10**6}) == 0
