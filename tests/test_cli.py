"""The command line: help, and mistakes, each of which is one line."""

import io
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

from recipe.console import UserError, check_range, run_command
from recipe.run import TrainOptions

PROGRAM = "python -m torch_impl.train"


def parse(monkeypatch, *arguments: str, options_type: type = TrainOptions) -> int:
    """The exit code of a command that does nothing but parse."""
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    with pytest.raises(SystemExit) as end:
        run_command(options_type, lambda _: pytest.fail("it parsed"), PROGRAM)
    assert isinstance(end.value.code, int)
    return end.value.code


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.mark.parametrize("columns", ["80", "40"])
@pytest.mark.parametrize(
    "output", [Terminal(), io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "ascii")]
)
@pytest.mark.parametrize(
    ("arguments", "explanation"),
    [
        ("--epochs abc", "Error parsing --epochs: no type matching INT could be instantiated from ['abc']"),
        ("--bogus", "Unrecognized options: --bogus"),
        ("--network", "Missing value for argument '--network'. Expected 1 values"),
        ("--netwrok net9954", "Unrecognized options: --netwrok, net9954; did you mean --network?"),
        ("--sed 1 --bacth 2", "Unrecognized options: --sed, 1, --bacth, 2; did you mean --batch and --seed?"),
        (
            "--dataset cifar",
            "invalid choice 'cifar' for argument '--dataset'. Expected one of auto, digits, mnist",
        ),
        ("--device tpu", "invalid choice 'tpu' for argument '--device'. Expected one of auto, cpu, cuda"),
        ("--split train", "invalid choice 'train' for argument '--split'. Expected one of holdout, test"),
        (
            "--precision float16",
            "invalid choice 'float16' for argument '--precision'. Expected one of bfloat16, bitwise, "
            "float32, float64",
        ),
        ("--tyro-print-completion x", "Shell should be one `bash`, `zsh`, `tcsh`, or `fish`, but got x"),
    ],
)
def test_a_mistake_is_explained_as_tyro_does_without_its_box(
    arguments, explanation, output, columns, monkeypatch, capsys
):
    """tyro draws a box by what standard output is: in colours on a terminal, of dashes without UTF-8."""
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", columns)
    assert parse(monkeypatch, *arguments.split()) == 2
    printed = capsys.readouterr()
    assert printed.err == f"error: {explanation}; see {PROGRAM} --help\n"
    assert printed.out == ""


@pytest.mark.parametrize("arguments", [["--epochs", "1", "--out", ""], ["--out=", "--epochs", "1"]])
def test_an_empty_value_does_not_mean_the_current_folder(arguments, monkeypatch, capsys):
    assert parse(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err == f"error: --out has an empty value; see {PROGRAM} --help\n"


@pytest.mark.parametrize("columns", ["80", "40"])
def test_options_that_are_missing_are_named(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    options_type = import_module("export.__main__").ExportOptions
    assert parse(monkeypatch, "--int8", options_type=options_type) == 2
    expected = f"error: missing: --checkpoint RUN and --out FILE; see {PROGRAM} --help\n"
    assert capsys.readouterr().err == expected


def show_help(options_type: type, monkeypatch, capsys) -> str:
    """The help as it is in a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    assert parse(monkeypatch, "--help", options_type=options_type) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "options_type"),
    [
        ("recipe.run", "TrainOptions"),
        ("lockstep.__main__", "LockstepOptions"),
        ("export.__main__", "ExportOptions"),
        ("benchmarks.pages", "PagesOptions"),
        ("benchmarks.training.__main__", "TrainingOptions"),
        ("benchmarks.inference.__main__", "InferenceOptions"),
        ("benchmarks.accuracy.__main__", "AccuracyOptions"),
        ("benchmarks.accuracy.tuning", "TuningOptions"),
    ],
)
def test_no_help_shows_what_nobody_can_type(module, options_type, monkeypatch, capsys):
    shown = show_help(getattr(import_module(module), options_type), monkeypatch, capsys)
    assert max(map(len, shown.splitlines())) <= 80
    words = " ".join(re.sub("[│╭╮╰╯─]", "", shown).split())
    assert "{None}" not in words
    assert not re.search(r"\(default: ?(None)?\)", words)


def test_the_help_is_short_and_shows_choices_metavariables_and_defaults(monkeypatch, capsys):
    shown = show_help(TrainOptions, monkeypatch, capsys)
    assert shown.startswith(f"usage: {PROGRAM} ")
    assert len(shown.splitlines()) <= 60
    assert max(map(len, shown.splitlines())) <= 80
    for option in (
        "--device {auto,cpu,cuda}",
        "--network net10040|net9954|net9808",
        "--split test|holdout",
        "--data-dir DIR",
        "--resume RUN",
        "--epochs INT",
    ):
        assert option in shown
    for default in ("net10040", "tuned", "the recipe's", "0", "float32", "test", "auto"):
        assert f"(default: {default})" in shown


def test_options_arrive(monkeypatch):
    seen = []
    arguments = (
        "--network net9954 --epochs 2 --dataset digits --max-steps 3 --resume runs/x --precision float64"
    )
    monkeypatch.setattr(sys, "argv", ["train", *arguments.split()])
    run_command(TrainOptions, seen.append, PROGRAM)
    assert seen == [
        TrainOptions(
            network="net9954",
            epochs=2,
            dataset="digits",
            max_steps=3,
            resume=Path("runs/x"),
            precision="float64",
        )
    ]


def test_a_user_s_mistake_is_one_line_and_exit_code_2(monkeypatch, capsys):
    def main(_):
        raise UserError("wrong\nhere")

    monkeypatch.setattr(sys, "argv", ["train"])
    with pytest.raises(SystemExit) as end:
        run_command(TrainOptions, main, PROGRAM)
    assert (end.value.code, capsys.readouterr()) == (2, ("", "error: wrong here\n"))


def test_ranges_include_their_ends():
    for value in (None, 1, 3):
        check_range("--epochs", value, 1, 3)
    for value in (0, 4):
        with pytest.raises(UserError, match=f"^--epochs {value} is out of range; give 1 to 3$"):
            check_range("--epochs", value, 1, 3)
