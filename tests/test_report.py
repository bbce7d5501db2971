"""What a run prints, to the letter."""

from typing import IO, cast

import pytest
from rich.console import Console

from recipe import console, run
from recipe.networks import get_network


@pytest.fixture(autouse=True)
def plain_console(monkeypatch):
    """As it is without a terminal, whatever the environment says of colours and columns."""
    plain = Console(file=cast(IO[str], console._stdout), highlight=False, width=120, color_system=None)
    monkeypatch.setattr(console, "screen", plain)


FIRST = {
    **{"epoch": 1, "step": 860, "lr": 0.0123456, "seconds": 12.34, "digest": "ab12"},
    **{"train_loss": 0.34567, "train_accuracy": 0.8989, "val_loss": 0.05432, "val_accuracy": 0.99876},
}
SECOND = FIRST | {"epoch": 2, "val_accuracy": 0.9912, "seconds": 10.0}


def test_an_epoch_is_one_line_of_80_columns_under_its_header():
    worst = FIRST | {"epoch": 1000, "val_accuracy": 1, "train_loss": 12345.6, "seconds": 123456.7}
    lines = [run.epoch_line(FIRST, 19), run.epoch_line(worst, 1000)]
    assert [run.EPOCH_HEADER, *lines] == [
        "  epoch       lr   train loss  accuracy     val loss  accuracy   seconds",
        "  1/19   0.01235       0.3457   89.89 %       0.0543   99.88 %      12.3",
        "1000/1000  0.01235   12345.6000   89.89 %       0.0543  100.00 %  123456.7",
    ]
    assert max(map(len, lines)) <= 80


def test_the_end_names_the_last_and_the_best_epoch():
    summary = run.summary([FIRST, SECOND], 9954, "mnist", 30.25)
    assert summary == (
        "final validation accuracy 99.12 % (epoch 2, mnist)\n"
        "best  validation accuracy 99.88 % (epoch 1)\n"
        "parameters 9,954   training time 22.3 s, and 30.2 s to compile\n"
        "SHA-256 of the state ab12"
    )
    assert "training time 12.3 s\n" in run.summary([FIRST], 9954, "mnist", 0.0)


def test_numbers_agree_with_their_noun():
    assert [console.count(n, "epoch") for n in (0, 1, 2000)] == ["0 epochs", "1 epoch", "2,000 epochs"]


def test_layers_are_shown_with_shapes_and_counts(capsys):
    run.show_layers(get_network("net9954"))
    lines = capsys.readouterr().out.replace("┃", "│").splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    assert ["layer", "what", "output (C, H, W)", "parameters"] in rows
    assert ["conv2", "Conv 3x3, 8 -> 16", "16, 24, 24", "1,168"] in rows
    assert ["maxpool3", "MaxPool", "8, 12, 12", "0"] in rows
    assert ["total", "no fully connected layer", "", "9,954"] in rows
    run.show_layers(get_network("net9808"))
    out = capsys.readouterr().out
    assert "Conv 3x3 pad 1, 1 -> 16" in out
    assert "Conv 3x3 pad 1, 16 -> 16, weights of conv2" in out


@pytest.mark.parametrize("show", [console.show_line, console.show_notice])
def test_what_looks_like_markup_is_shown_and_nothing_is_wrapped(show, capsys):
    show("[red]runs/a[/red] " + 300 * "x")
    assert capsys.readouterr().out == "[red]runs/a[/red] " + 300 * "x" + "\n"
