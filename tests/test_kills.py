"""Killed runs: any moment, every line of writing. `benchmarks.kills` does the same by the hundred."""

import os
import random
import signal
import sys
from pathlib import Path

import pytest

from benchmarks import kills
from benchmarks.kills import Killer, is_identical, make_context, read_what_is_there, summarise
from recipe.checkpoint import FILE_NAME, load_checkpoint
from recipe.errors import UserError
from tests import fake
from tests.test_faults import train as train_fake


@pytest.fixture(scope="module")
def context():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TORCHDYNAMO_DISABLE", "PYTHONWARNINGS"):
            patch.setenv(name, os.environ.get(name, ""))  # which puts back what `make_context` changes
        yield make_context()


@pytest.mark.parametrize("name", kills.NAMES)
def test_killed_runs_end_as_runs_that_were_not(name, context, tmp_path):
    check_kills(name, context, tmp_path, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", kills.NAMES)
def test_many_killed_runs_end_as_runs_that_were_not(name, context, tmp_path):
    check_kills(name, context, tmp_path, 50)


def check_kills(name, context, folder, count):
    killer = Killer(name, 2, folder, context)
    rng = random.Random(count)
    found = summarise([killer.kill_after(rng.uniform(0.3, 0.9) * killer.seconds) for _ in range(count)])
    assert found["bit_identical_after_resume"] == found["kills"]
    assert found["unreadable_files"] == 0


def test_a_kill_at_every_line_of_writing(context, tmp_path, monkeypatch):
    """Every one, with a framework that costs nothing; `benchmarks.kills` does it with the real ones."""
    lines = run_until(context, tmp_path / "whole", sys.maxsize)
    wanted = load_checkpoint(tmp_path / "whole" / FILE_NAME)
    assert lines > 80
    monkeypatch.setattr("recipe.folder.draw_curves", fake.draw_nothing)
    monkeypatch.setattr("recipe.data.load_digits", fake.load_blanks)
    for line in range(lines):
        out = tmp_path / f"killed-{line}"
        assert run_until(context, out, line) == -signal.SIGKILL
        readable, kept = read_what_is_there(out)
        assert readable, line
        try:
            train_fake(out, epochs=2, resume=out / FILE_NAME if kept else None)
        except UserError as error:
            assert f"is at step {wanted.step} already" in str(error), line
        assert is_identical(out, wanted), line


def run_until(context, out: Path, line: int) -> int:
    """A run in a process that is killed at a line of writing; its exit code, or how many lines it had."""
    answer = out.with_suffix(".lines")
    process = context.Process(target=fake.run_until, args=(line, out, answer))
    process.start()
    process.join(60)
    return process.exitcode or int(answer.read_text())


def test_the_killer_sees_what_is_not_identical(tmp_path):
    path = train_fake(tmp_path / "run")
    wanted = load_checkpoint(path)
    assert is_identical(path.parent, wanted)
    (path.parent / ".losses.npy.12345678").write_text("")
    assert not is_identical(path.parent, wanted), "a temporary file that stays"
    (path.parent / ".losses.npy.12345678").unlink()
    lines = (path.parent / "metrics.jsonl").read_text()
    (path.parent / "metrics.jsonl").write_text(lines.replace('"epoch": 2', '"epoch": 3'))
    assert not is_identical(path.parent, wanted)
    (path.parent / "metrics.jsonl").write_text(lines)
    wanted.tensors["conv1.weight"].flat[0] *= -1
    assert not is_identical(path.parent, wanted)
    for name in ("metrics.jsonl", "losses.npy", "curves.png", "config.json", FILE_NAME):
        whole = (path.parent / name).read_bytes()
        (path.parent / name).write_bytes(whole[: len(whole) // 2])
        assert not read_what_is_there(path.parent)[0], name
        (path.parent / name).write_bytes(whole)
    assert read_what_is_there(path.parent) == (True, 3)
