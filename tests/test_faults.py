"""What goes wrong around a run: full disks, read-only folders, signals, closed terminals, jumping clocks."""

import dataclasses
import errno
import json
import os
import pty
import signal
import stat
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from recipe import console, run
from recipe.checkpoint import FILE_NAME, load_checkpoint, read_at_most, write_atomically
from recipe.console import MAX_CHARACTERS, UserError, one_line, run_command
from recipe.run import FILES, TrainOptions, open_folder
from tests import fake

PER_EPOCH = 11
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def skip_slow_parts(monkeypatch):
    fake.skip_slow_parts(monkeypatch.setattr)


def arguments(out: Path, *more: str) -> list[str]:
    options = ["--network", "net9954", "--dataset", "digits", "--epochs", "3", "--batch", "128"]
    return [*options, "--out", str(out), *more]


def start(kind: str, out: Path, *more: str, **changes) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.fake", kind, *arguments(out, *more)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, text=True, **(pipes | changes))


def train(out: Path, **changes) -> Path:
    run.train(dataclasses.replace(fake.OPTIONS, out=out, **changes), fake.FRAMEWORK)
    return out / FILE_NAME


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


# ------------------------------------------------------------------------------------------------------ disks


@pytest.mark.subprocess
def test_a_disk_that_is_full_in_the_second_epoch(tmp_path):
    # Where coverage is measured, the program has no room to say so, either.
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    process = start("Limited", tmp_path / "run", env=unmeasured)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.count("\n") == 1
    assert errors.startswith("error: cannot write ")
    assert "File too large; nothing there was changed" in errors
    assert not list((tmp_path / "run").glob(".*.*")), "no temporary file stays"
    check_resume(tmp_path / "run")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 800 kB, where tests may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=800k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_file_system_without_room(small_disk, monkeypatch):
    (small_disk / "ballast").write_bytes(bytes(500_000))  # room for one checkpoint, not for two
    with pytest.raises(
        UserError, match=r"cannot write .*: No space left on device; nothing there was changed"
    ):
        train(small_disk / "run", precision="float64")
    kept = small_disk / "run" / FILE_NAME
    assert not kept.exists() or load_checkpoint(kept).step == PER_EPOCH
    (small_disk / "ballast").unlink()
    resume = kept if kept.exists() else None
    assert load_checkpoint(train(small_disk / "run", precision="float64", resume=resume)).step == 33


def test_a_read_only_disk(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(
        UserError, match=r"cannot use .* as run folder: Read-only file system; choose another"
    ):
        train(small_disk / "run")
    with pytest.raises(UserError, match="Read-only"):
        write_atomically(small_disk / "file", b"")


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


def test_a_folder_that_cannot_be_synced_is_written_all_the_same(tmp_path, monkeypatch):
    sync = os.fsync

    def sync_files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", sync_files_only)
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_folder_that_nobody_can_write():
    with pytest.raises(UserError, match=r"cannot use /proc/run as run folder: .*; choose another --out"):
        train(Path("/proc/run"))


def test_a_folder_without_permission(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"Permission denied; choose another --out"):
        train(tmp_path / "run")


@pytest.mark.subprocess
@pytest.mark.parametrize("unbuffered", ["", "1"])  # writing fails when it flushes, or at once
def test_a_screen_that_is_a_full_disk(unbuffered, tmp_path):
    with Path("/dev/full").open("w") as full:
        environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        process = start("Trainer", tmp_path / "run", stdout=full, env=environment)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.count("\n")) == (0, 1)
    assert errors == "standard output takes no more (No space left on device); going on without it\n"
    assert load_checkpoint(tmp_path / "run" / FILE_NAME).step == 3 * PER_EPOCH


# ---------------------------------------------------------------------------------------- leftovers and locks


def test_leftovers_of_a_killed_run_are_removed_and_nothing_else(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    leftovers = [out / f".{name}.abcd_123" for name in FILES]
    others = [out / "notes.txt", out / ".hidden", out / "checkpoint.safetensors.backup"]
    for path in (*leftovers, *others):
        path.write_text("")
    with open_folder(out, None):
        assert not any(path.exists() for path in leftovers)
        assert all(path.exists() for path in others)


def test_a_refused_run_removes_nothing(tmp_path):
    train(tmp_path / "run", max_steps=PER_EPOCH)
    leftover = tmp_path / "run" / ".losses.npy.abcd_123"
    leftover.write_text("")
    with pytest.raises(UserError, match="already holds a run"):
        train(tmp_path / "run")
    assert leftover.exists(), "it could be a file in the making"


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


def test_a_checkpoint_that_another_run_has_just_moved_on_is_not_used(tmp_path, monkeypatch):
    path = train(tmp_path / "run", max_steps=PER_EPOCH)

    class Other(fake.Trainer):
        def __init__(self, *_):  # after the checkpoint was read and before the folder is locked
            monkeypatch.undo()
            fake.skip_slow_parts(monkeypatch.setattr)
            train(tmp_path / "run", resume=path)

    monkeypatch.setattr(fake, "FRAMEWORK", dataclasses.replace(fake.FRAMEWORK, trainer=Other))
    with pytest.raises(UserError, match="another run has just gone on from"):
        train(tmp_path / "run", resume=path)
    assert load_checkpoint(path).step == 3 * PER_EPOCH


# ------------------------------------------------------------------------------- a run killed at its very end


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
    for out in ("run", "elsewhere"):  # once more, there is nothing to do
        train(tmp_path / out, resume=path)
        assert "is finished: step 33 is its last; nothing was trained" in capsys.readouterr().out
    assert {entry.name: entry.read_bytes() for entry in path.parent.iterdir()} == before
    assert not (tmp_path / "elsewhere").exists()


def test_a_resumed_run_writes_its_metrics_as_one_that_was_not_stopped(tmp_path):
    train(tmp_path / "parts", max_steps=PER_EPOCH)
    train(tmp_path / "parts", resume=tmp_path / "parts" / FILE_NAME)
    train(tmp_path / "whole")
    keys = [
        [list(json.loads(line)) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("parts", "whole")
    ]
    assert keys[0] == keys[1]


# -------------------------------------------------------------------------------------- signals and terminals


@pytest.mark.subprocess
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_run_as_control_c_does(number, tmp_path):
    before = signal.signal(number, signal.SIG_DFL)  # which nohup may have set otherwise, for children too
    process = start("Slow", tmp_path / "run")
    signal.signal(number, before)
    wait_for(tmp_path / "run" / "metrics.jsonl")
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (128 + number, "")
    assert "interrupted; kept:" in output
    assert "at step 11" in output
    assert (tmp_path / "run" / "curves.png").exists()
    check_resume(tmp_path / "run")


def test_a_signal_that_is_ignored_stays_ignored():
    ignored = {signal.SIGHUP: signal.SIG_IGN, signal.SIGTERM: signal.SIG_DFL}  # the latter not under mutmut
    before = {number: signal.signal(number, handler) for number, handler in ignored.items()}
    try:
        with console.raise_on_signal():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            with pytest.raises(KeyboardInterrupt) as end:
                signal.raise_signal(signal.SIGTERM)
            assert (console.exit_code(end.value), str(end.value)) == (143, "SIGTERM")
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert console.exit_code(KeyboardInterrupt()) == 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(("interruption", "code"), [(KeyboardInterrupt(), 130), (console.Signalled(15), 143)])
def test_an_interrupted_command_says_by_what(interruption, code, monkeypatch):
    def interrupted(_):
        raise interruption

    monkeypatch.setattr(sys, "argv", ["train"])
    with pytest.raises(SystemExit) as end:
        run_command(TrainOptions, interrupted, "python -m torch_impl.train")
    assert end.value.code == code


@pytest.mark.subprocess
@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_is_closed(ignored, tmp_path):
    """The run ends with what it had; under nohup it goes on without a screen."""
    ours, theirs = pty.openpty()
    program = (
        "import fcntl, runpy, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        f"signal.signal(signal.SIGHUP, signal.{'SIG_IGN' if ignored else 'SIG_DFL'}); "
        "runpy.run_module('tests.fake', run_name='__main__', alter_sys=True)"
    )
    kind = "Unheard" if ignored else "Slow"
    environment = os.environ | {"UNHEARD": str(ours), "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-c", program, kind, *arguments(tmp_path / "run")],
        **{"stdin": theirs, "stdout": theirs, "stderr": theirs},
        cwd=ROOT,
        env=environment,
        start_new_session=True,
        pass_fds=[ours] if ignored else [],
    )
    os.close(theirs)
    if ignored:
        os.close(ours)  # the run itself has the last of it
    else:
        wait_for(tmp_path / "run" / "metrics.jsonl")
        os.close(ours)
    assert process.wait(timeout=60) == (0 if ignored else 128 + signal.SIGHUP)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == set(FILES)
    if ignored:
        assert load_checkpoint(tmp_path / "run" / FILE_NAME).step == 3 * PER_EPOCH
    else:
        check_resume(tmp_path / "run")


@pytest.mark.subprocess
def test_a_pipe_that_is_closed(tmp_path):
    """As of ``| head -1``: the run goes on and says so once."""
    read, write = os.pipe()
    os.set_inheritable(read, True)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fake", "Unheard", *arguments(tmp_path / "run")],
        **{"stdout": write, "stderr": subprocess.PIPE},
        text=True,
        cwd=ROOT,
        env=os.environ | {"UNHEARD": str(read)},
        pass_fds=[read],
    )
    os.close(read)
    os.close(write)
    _, errors = process.communicate(timeout=60)
    assert errors == "standard output takes no more (Broken pipe); going on without it\n"
    assert process.returncode == 0
    assert load_checkpoint(tmp_path / "run" / FILE_NAME).step == 3 * PER_EPOCH


@pytest.mark.subprocess
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_no_screen_from_the_start(closed, tmp_path):
    command = " ".join([sys.executable, "-m", "tests.fake", "Trainer", *arguments(tmp_path / "run")])
    for code in (0, 2):  # the second finds a run there
        done = subprocess.run(f"{command} {closed}", shell=True, cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == code
    assert load_checkpoint(tmp_path / "run" / FILE_NAME).step == 3 * PER_EPOCH


@pytest.mark.subprocess
def test_help_for_a_reader_that_is_gone():
    command = f"{sys.executable} -m tests.fake Trainer --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


@pytest.mark.subprocess
def test_what_an_encoding_lacks_is_escaped(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.fake", "Trainer", *arguments(tmp_path / "r\udcffn")],
        **{"cwd": ROOT, "capture_output": True, "check": False},
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"r\\udcffn" in done.stdout


def test_messages_are_one_line_and_hold_no_commands():
    assert str(UserError("a\n\n  b\x1b[2J\0 \udcff é")) == "a b\\x1b[2J\\x00 \\udcff é"
    assert len(one_line("x" * 10**6)) == MAX_CHARACTERS
    console.show_error("fine")


def test_an_error_is_one_line_on_stderr(capfd):
    console.show_error("a\nb")
    assert capfd.readouterr() == ("", "error: a b\n")


def test_an_error_that_nobody_can_read_is_no_error(monkeypatch):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        console.show_error("no room")
        console.show_error("nor now")  # it goes nowhere by now
        full.flush()


# ------------------------------------------------------------------------------------------- clocks and files


def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    whole = load_checkpoint(train(tmp_path / "whole"))
    jumps = iter(range(10**9, 0, -(10**6)))
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    monkeypatch.setattr(time, "time_ns", lambda: next(jumps) * 10**9)

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.fromtimestamp(next(jumps), tz or UTC)

    monkeypatch.setattr(run, "datetime", Clock)
    jumped = load_checkpoint(train(tmp_path / "jumped"))
    np.testing.assert_array_equal(jumped.losses, whole.losses)
    assert all(0 <= entry["seconds"] < 60 for entry in jumped.metrics)


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, Path("/dev/zero"), tmp_path / "pipe"):  # the pipe last: reading it would wait
        with pytest.raises(OSError, match="no regular file"):
            read_at_most(path, 10)
        with pytest.raises(UserError, match="cannot read the checkpoint"):
            load_checkpoint(path)
    (tmp_path / "file").write_bytes(bytes(20))
    assert len(read_at_most(tmp_path / "file", 10)) == 11


def test_a_path_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the checkpoint .*File name too long"):
        train(tmp_path / "run", resume=Path("x" * 1_000))


def test_more_steps_than_a_checkpoint_holds_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "MAX_STEPS", 1_000_000)
    with pytest.raises(UserError, match=r"1,437,000 steps are more than 1,000,000; give fewer --epochs"):
        train(tmp_path / "run", epochs=1000, batch=1)
