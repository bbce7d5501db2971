"""What goes wrong around a run: full disks, read-only folders, two runs in one folder, signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from recipe.checkpoint import FILE_NAME, load_checkpoint, read_at_most, write_atomically
from recipe.console import UserError
from recipe.run import FILES, open_folder
from tests import fake
from tests.fake import PER_EPOCH, train
from tests.helpers import ROOT


@pytest.fixture(autouse=True)
def skip_slow_parts(monkeypatch):
    fake.skip_slow_parts(monkeypatch.setattr)


def start(kind: str, out: Path, *more: str, **changes) -> subprocess.Popen[str]:
    options = ["--network", "net9954", "--dataset", "digits", "--epochs", "3", "--batch", "128"]
    options += ["--precision", "float32"]
    command = [sys.executable, "-m", "tests.fake", kind, *options, "--out", str(out), *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, text=True, **(pipes | changes))


def check_resume(out: Path) -> None:
    """A run of one epoch is resumed and ends as a run that was not stopped."""
    assert load_checkpoint(out / FILE_NAME).step == PER_EPOCH
    last = load_checkpoint(train(out, resume=out))
    whole = load_checkpoint(train(out.parent / "whole"))
    np.testing.assert_array_equal(last.losses, whole.losses)
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(last.tensors[name], tensor)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ------------------------------------------------------------ disks


@pytest.mark.subprocess
def test_a_disk_that_is_full_in_the_second_epoch(tmp_path):
    # Where coverage is measured, the program has no room to say so, either.
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    process = start("Limited", tmp_path / "run", env=unmeasured)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.startswith("error: cannot write ") and errors.count("\n") == 1
    assert "File too large; nothing there was changed" in errors
    assert not list((tmp_path / "run").glob(".*.*")), "no temporary file stays"
    check_resume(tmp_path / "run")


def test_a_read_only_disk(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a disk")
    try:
        with pytest.raises(UserError, match=r"cannot use .* as run folder: Read-only file system; choose"):
            train(tmp_path / "run")
        with pytest.raises(UserError, match="Read-only"):
            write_atomically(tmp_path / "file", b"")
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_folder_without_permission(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"Permission denied; choose another --out"):
        train(tmp_path / "run")


def test_what_is_written_outlasts_a_power_cut(tmp_path, monkeypatch):
    """As far as a disk can be asked: the content is synced before it gets its name, the folder afterwards."""
    path, seen = tmp_path / "file", []

    def sync(descriptor: int) -> None:
        on_disk = Path(f"/proc/self/fd/{descriptor}").readlink()
        seen.append((on_disk, on_disk.is_dir() or on_disk.read_bytes(), path.exists() and path.read_bytes()))

    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", sync)
    write_atomically(path, b"new")
    (temporary, content, then), folder = seen
    assert (temporary.parent, content, then) == (tmp_path, b"new", b"old")
    assert folder == (tmp_path, True, b"new")


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, Path("/dev/zero"), tmp_path / "pipe"):  # the pipe last: reading it would wait
        with pytest.raises(OSError, match="no regular file"):
            read_at_most(path, 10)
        with pytest.raises(UserError, match="cannot read the checkpoint"):
            load_checkpoint(path)
    (tmp_path / "file").write_bytes(bytes(20))
    assert len(read_at_most(tmp_path / "file", 10)) == 11


# ------------------------------------------------------------ leftovers and locks


def test_leftovers_of_a_killed_run_are_removed_and_nothing_else(tmp_path):
    leftovers = [tmp_path / f".{name}.abcd_123" for name in FILES]
    others = [tmp_path / "notes.txt", tmp_path / ".hidden", tmp_path / "checkpoint.safetensors.backup"]
    for path in (*leftovers, *others):
        path.write_text("")
    with open_folder(tmp_path, None):
        assert not any(path.exists() for path in leftovers)
        assert all(path.exists() for path in others)


@pytest.mark.subprocess
def test_a_second_process_is_refused_and_the_first_loses_nothing(tmp_path):
    first = start("Slow", tmp_path / "run")
    wait_for(tmp_path / "run" / "metrics.jsonl")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    for more in ([], ["--resume", str(tmp_path / "run" / FILE_NAME)]):
        second = start("Trainer", tmp_path / "run", *more)
        _, errors = second.communicate(timeout=60)
        assert (second.returncode, errors.count("\n")) == (2, 1)
        assert "another run is at work in" in errors
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    first.kill()
    first.wait()
    check_resume(tmp_path / "run")


def test_a_stale_checkpoint_is_not_resumed(tmp_path):
    path = train(tmp_path / "run", max_steps=PER_EPOCH)

    class Other(fake.Trainer):
        def __init__(self, *_):  # after the checkpoint was read and before the folder is locked
            super().__init__(*_)
            train(tmp_path / "run", resume=path)

    with pytest.raises(UserError, match="another run has just gone on from"):
        train(tmp_path / "run", Other, resume=path)
    assert load_checkpoint(path).step == 3 * PER_EPOCH


@pytest.mark.parametrize("missing", ["losses.npy", "metrics.jsonl", "curves.png"])
def test_files_that_a_run_did_not_come_to_are_completed(missing, tmp_path, capsys):
    path = train(tmp_path / "run")
    before = {entry.name: entry.read_bytes() for entry in path.parent.iterdir()}
    for old in (None, b"of an earlier epoch"):
        (tmp_path / "run" / missing).unlink()
        if old:
            (tmp_path / "run" / missing).write_bytes(old)
        train(tmp_path / "run", resume=path)
        assert "completed the files in" in capsys.readouterr().out
        assert {entry.name: entry.read_bytes() for entry in path.parent.iterdir()} == before
    train(tmp_path / "elsewhere", resume=path)
    assert "is finished: step 33 is its last; nothing was trained" in capsys.readouterr().out
    assert not (tmp_path / "elsewhere").exists()


# ------------------------------------------------------------ signals


@pytest.mark.subprocess
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_run_with_its_files_complete(number, tmp_path):
    handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, handler)  # which a shell may have set otherwise, for children too
    process = start("Slow", tmp_path / "run")
    signal.signal(number, before)
    wait_for(tmp_path / "run" / "metrics.jsonl")
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (128 + number, "")
    if number != signal.SIGHUP:  # after which the screen is gone
        assert "interrupted; kept:" in output and "at step 11" in output
    assert {path.name for path in (tmp_path / "run").iterdir()} == set(FILES)
    check_resume(tmp_path / "run")


@pytest.mark.subprocess
def test_a_run_that_ignores_the_end_of_its_terminal_goes_on(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does, for children too
    process = start("Trainer", tmp_path / "run")
    signal.signal(signal.SIGHUP, before)
    wait_for(tmp_path / "run")
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert load_checkpoint(tmp_path / "run" / FILE_NAME).step == 3 * PER_EPOCH
