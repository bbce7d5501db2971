"""The command line and the screen: help, mistakes, signals and closed pipes, each without a traceback."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from export.__main__ import ExportOptions
from recipe.console import UserError, check_range, one_line, run_command
from recipe.run import TrainOptions
from tests.helpers import ROOT

PROGRAM = "python -m torch_impl.train"
PROGRAMS = ("torch_impl.train", "jax_impl.train", "export")


def parse(monkeypatch, *arguments: str, options_type: type = TrainOptions) -> int:
    """The exit code of a command that does nothing but parse."""
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    with pytest.raises(SystemExit) as end:
        run_command(options_type, lambda _: pytest.fail("it parsed"), PROGRAM)
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.parametrize(
    ("arguments", "explanation"),
    [
        (["--epochs", "abc"], "argument --epochs: 'abc' is not a whole number"),
        (["--netwrok", "net9954"], "unrecognized arguments: --netwrok net9954 (did you mean --network?)"),
        (["--prec", "bitwise"], "unrecognized arguments: --prec bitwise (did you mean --precision?)"),
        (["--network", "16", "pool"], "unrecognized arguments: pool (a value with spaces needs quotes)"),
        (["--network"], "argument --network: expected one argument"),
        (["--dataset", "cifar"], "argument --dataset: invalid choice: 'cifar'"),
        (["--out", ""], "argument --out: it has an empty value"),
        (["--out=", "--epochs", "1"], "argument --out: it has an empty value"),
        (["--int8"], "the following arguments are required: --checkpoint, --out"),
    ],
)
def test_a_mistyped_option_is_one_line_and_exit_code_2(arguments, explanation, monkeypatch, capsys):
    options_type = ExportOptions if arguments == ["--int8"] else TrainOptions
    assert parse(monkeypatch, *arguments, options_type=options_type) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {explanation}")
    assert printed.err.endswith(f"; see {PROGRAM} --help\n") and printed.err.count("\n") == 1
    assert printed.out == ""


def test_the_help_has_every_option_within_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert parse(monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert all(f"--{name.replace('_', '-')}" in shown for name in TrainOptions.__dataclass_fields__)


def test_options_arrive(monkeypatch):
    seen = []
    words = "--network net9954 --epochs 2 --dataset digits --max-steps 3 --resume runs/x --precision float64"
    monkeypatch.setattr(sys, "argv", ["train", *words.split()])
    run_command(TrainOptions, seen.append, PROGRAM)
    options = {"network": "net9954", "epochs": 2, "dataset": "digits", "max_steps": 3, "precision": "float64"}
    assert seen == [TrainOptions(**options, resume=Path("runs/x"))]


def test_a_user_s_mistake_is_one_line_and_exit_code_2(monkeypatch, capsys):
    def main(_):
        raise UserError("wrong\nhere \x1b[2J")

    monkeypatch.setattr(sys, "argv", ["train"])
    with pytest.raises(SystemExit) as end:
        run_command(TrainOptions, main, PROGRAM)
    assert (end.value.code, capsys.readouterr()) == (2, ("", "error: wrong here \\x1b[2J\n"))
    assert len(one_line("x" * 10**6)) == 2_000


def test_ranges_include_their_ends():
    for value in (None, 1, 3):
        check_range("--epochs", value, 1, 3)
    for value in (0, 4):
        with pytest.raises(UserError, match=f"^--epochs {value} is out of range; give 1 to 3$"):
            check_range("--epochs", value, 1, 3)


# Signals ignored by whoever started the tests are ignored by their children, too.
LISTEN = "import signal; [signal.signal(n, signal.SIG_DFL) for n in (1, 15)]; "
LISTEN += "signal.signal(2, signal.default_int_handler); "


@pytest.mark.subprocess
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_signal_while_a_program_is_still_importing_ends_it_with_one_line(program, tmp_path):
    """A module that stands for a slow import sends the signal, as early as an import of a program can be."""
    number = signal.SIGTERM if program == "export" else signal.SIGINT
    package = tmp_path / "numpy"
    package.mkdir()
    (package / "__init__.py").write_text(
        f"import os, time; os.kill(os.getpid(), {int(number)}); time.sleep(9)"
    )
    start = (
        f"{LISTEN} import os, sys; os.execv(sys.executable, [sys.executable, '-m', '{program}', '--help'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", start],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "interrupted\n")


@pytest.mark.subprocess
def test_a_signal_while_an_object_is_deleted_ends_a_program_as_any_other():
    program = """
import os, time
from dataclasses import dataclass
from recipe.console import run_command

@dataclass
class Options:
    pass

class Deleted:
    def __del__(self):
        os.kill(os.getpid(), 15)
        time.sleep(9)

def main(options):
    Deleted()
    time.sleep(9)
    print("the signal was lost")

run_command(Options, main, "program")
"""
    done = subprocess.run([sys.executable, "-c", LISTEN + program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (128 + 15, "interrupted\n", "")


def test_a_library_leaves_signals_alone():
    program = "import signal, torch_impl, jax_impl, export; print(signal.getsignal(15) is signal.SIG_DFL)"
    done = subprocess.run([sys.executable, "-c", LISTEN + program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "True\n"


@pytest.mark.subprocess
@pytest.mark.parametrize("arguments", ["Trainer --help", "Talking --dataset digits --network net9954"])
def test_a_closed_pipe_ends_a_program_quietly(arguments, tmp_path):
    command = f"{sys.executable} -m tests.fake {arguments} --out {tmp_path}/run | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


@pytest.mark.subprocess
def test_a_screen_that_is_closed_or_lacks_a_character(tmp_path):
    arguments = "Trainer --dataset digits --network net9954 --epochs 1 --out"
    for name, closed in (("a", ">&-"), ("b", "2>&-"), ("c", ">&- 2>&-")):
        command = f"{sys.executable} -m tests.fake {arguments} {tmp_path}/{name} {closed}"
        for code in (0, 2):  # the second finds a run there
            assert subprocess.run(command, shell=True, cwd=ROOT, capture_output=True).returncode == code
    done = subprocess.run(
        [sys.executable, "-m", "tests.fake", *arguments.split(), str(tmp_path / "r\udcffn")],
        cwd=ROOT,
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"r\\udcffn" in done.stdout
