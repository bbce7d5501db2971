"""A run killed at any moment, by SIGKILL, is resumed to the same bits, and no file is half-written."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from recipe import checkpoint
from recipe.checkpoint import FILE_NAME, load_checkpoint, state_digest
from recipe.run import FILES
from tests import fake
from tests.helpers import ROOT

WRITING = {f.__code__ for f in (checkpoint.write_atomically, checkpoint._sync_folder)}  # a run's files


def train_until_line(number: int, out: Path) -> bool:
    """Train in a process that is killed before that line of `WRITING`; return True if it came to it."""
    lines = count()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line" and frame.f_code in WRITING and next(lines) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace if frame.f_code in WRITING else None

    child = os.fork()
    if child == 0:
        try:
            sys.settrace(trace)
            fake.train(out, epochs=2)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def read(folder: Path) -> dict[str, Any]:
    """What a run left, every file whole: all but the seconds and what is said of the machine and the time."""
    for path in (folder / name for name in FILES if (folder / name).exists()):
        if path.suffix == ".npy":
            np.load(path, allow_pickle=False)
        elif path.suffix in (".json", ".jsonl"):
            assert path.read_text().endswith("\n")
            [json.loads(line) for line in path.read_text().splitlines() if path.suffix == ".jsonl"]
    if not (folder / FILE_NAME).exists():
        return {}
    state = load_checkpoint(folder / FILE_NAME)
    metrics = [vars(entry) | {"seconds": 0} for entry in state.metrics]
    return {"losses": state.losses.tobytes(), "digest": state_digest(state.tensors), "metrics": metrics}


@pytest.mark.subprocess
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")  # the child only computes with NumPy
def test_a_run_killed_before_any_line_of_writing_is_resumed_to_the_same_bits(tmp_path, monkeypatch):
    fake.skip_slow_parts(monkeypatch.setattr)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a kill loses nothing that was written
    fake.train(tmp_path / "whole", epochs=2)
    whole, kept, out = read(tmp_path / "whole"), set(), tmp_path / "run"
    for line in count():
        if not train_until_line(line, out):
            break
        left = read(out)
        kept.add(len(left.get("metrics", ())))
        fake.train(out, epochs=2, resume=out if left else None)
        assert read(out) == whole, line
        assert {path.name for path in out.iterdir()} == set(FILES), line
        shutil.rmtree(out)
    assert line > 50 and kept == {0, 1, 2}


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_real_run_killed_at_random_is_resumed_to_the_same_bits(framework, tmp_path):
    words = ["--network", "net9954", "--dataset", "digits", "--epochs", "2", "--precision", "float32"]
    words += ["--device", "cpu", "--out"]

    def start(out: Path, *more: str) -> subprocess.Popen:
        command = [sys.executable, "-m", f"{framework}_impl.train", *words, str(out), *more]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)

    began = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    seconds, whole, rng = time.monotonic() - began, read(tmp_path / "whole"), random.Random(0)
    for out in (tmp_path / str(number) for number in range(2)):
        process = start(out)
        time.sleep(seconds * rng.uniform(0.3, 0.95))
        process.kill()
        process.wait()
        assert start(out, *(["--resume", str(out)] if read(out) else [])).wait() == 0
        assert read(out) == whole
