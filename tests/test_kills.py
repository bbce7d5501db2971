"""A run that is killed at any moment is resumed to the same bits."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from recipe.checkpoint import FILE_NAME
from tests.kills import Killer, count, is_identical, make_context, read_files

ROOT = Path(__file__).parent.parent
FRAMEWORKS = ("torch", "jax")


@pytest.fixture(scope="module")
def context():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "PYTHONWARNINGS", "ignore"
        )  # JAX warns of being forked, but has no threads before its first use
        yield make_context()


def kill_at_random(killer, kills):
    rng = random.Random(0)
    outcomes = []
    while sum(outcome.killed for outcome in outcomes) < kills:
        outcomes.append(killer.kill_after(rng.uniform(0, 0.95) * killer.seconds))
    return count(outcomes)


def check(counts):
    assert counts["identical"] == counts["kills"] > 0
    assert counts["damaged"] == 0


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_run_killed_at_random(name, context, tmp_path):
    check(kill_at_random(Killer(name, tmp_path, context), 3))


@pytest.mark.subprocess
def test_a_run_killed_at_each_line_of_writing(tmp_path):
    """With a framework that computes nothing; the slow test does the same with the real ones."""
    command = [sys.executable, "-m", "tests.kills", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    counts = json.loads(done.stdout)
    check(counts)
    assert counts["kills"] > 100
    assert min(counts["kept_0"], counts["kept_1"], counts["kept_2"]) > 10


@pytest.mark.slow
@pytest.mark.hours
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_run_killed_hundreds_of_times(name, context, tmp_path, request, publish):
    killer = Killer(name, tmp_path, context)
    at_random = kill_at_random(killer, request.config.getoption("count") or 100)
    at_each_line = count([killer.kill_at_line(line) for line in range(killer.count_lines())])
    check(at_random)
    check(at_each_line)
    run = {"test": "kills", "framework": name, "network": "net9954", "epochs": 2}
    publish(
        run | {"moment": "at random"} | at_random,
        run | {"moment": "at each line of writing"} | at_each_line,
    )


@pytest.mark.subprocess
def test_what_is_not_identical_or_not_whole_is_noticed(context, tmp_path):
    killer = Killer("fake", tmp_path, context)
    folder = tmp_path / "whole"
    assert is_identical(folder, killer.expected)
    (folder / ".losses.npy.12345678").write_text("")
    assert not is_identical(folder, killer.expected), "a temporary file that stays"
    (folder / ".losses.npy.12345678").unlink()
    lines = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(lines.replace('"epoch": 2', '"epoch": 3'))
    assert not is_identical(folder, killer.expected)
    (folder / "metrics.jsonl").write_text(lines)
    killer.expected.tensors["conv1.weight"].flat[0] *= -1
    assert not is_identical(folder, killer.expected)
    for name in ("metrics.jsonl", "losses.npy", "curves.png", "config.json", FILE_NAME):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 3])  # within the first line of metrics.jsonl
        assert not read_files(folder)[0], name
        (folder / name).write_bytes(content)
    assert read_files(folder) == (True, 2)
