"""What a run prints, to the letter."""

from typing import IO, cast

import pytest
from rich.console import Console

from recipe import report
from recipe.networks import get_network


@pytest.fixture(autouse=True)
def plain_console(monkeypatch):
    """As it is without a terminal, whatever the environment says of colours and columns."""
    console = Console(file=cast(IO[str], report.screen), highlight=False, width=120, color_system=None)
    monkeypatch.setattr(report, "console", console)


FIRST = {
    **{"epoch": 1, "step": 860, "lr": 0.0123456, "seconds": 12.34},
    **{"train_loss": 0.34567, "train_accuracy": 0.8989, "val_loss": 0.05432, "val_accuracy": 0.99876},
}
SECOND = FIRST | {"epoch": 2, "val_accuracy": 0.9912, "seconds": 10.0}


def test_an_epoch_is_one_aligned_line():
    lines = [report.epoch_line(entry, 19) for entry in (FIRST, SECOND | {"epoch": 10, "val_accuracy": 1})]
    assert lines == [
        "epoch   1/19  lr 0.01235  train loss 0.3457 accuracy  89.89 %  "
        "val loss 0.0543 accuracy  99.88 %    12.3 s",
        "epoch  10/19  lr 0.01235  train loss 0.3457 accuracy  89.89 %  "
        "val loss 0.0543 accuracy 100.00 %    10.0 s",
    ]


def test_the_end_names_the_last_and_the_best_epoch():
    assert report.summary([FIRST, SECOND], 9954, "mnist") == (
        "final validation accuracy 99.12 % (epoch 2, mnist)\n"
        "best  validation accuracy 99.88 % (epoch 1)\n"
        "parameters 9,954   training time 22.3 s"
    )


def test_layers_are_shown_with_shapes_and_counts(capsys):
    report.show_layers(get_network("net9954"))
    lines = capsys.readouterr().out.replace("┃", "│").splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    assert ["layer", "what", "output (C, H, W)", "parameters"] in rows
    assert ["conv2", "Conv 3x3, 8 -> 16", "16, 24, 24", "1,168"] in rows
    assert ["maxpool3", "MaxPool", "8, 12, 12", "0"] in rows
    assert ["total", "no fully connected layer", "", "9,954"] in rows
    report.show_layers(get_network("net9555"))
    assert "Conv 3x3 pad 1, 1 -> 13" in capsys.readouterr().out


@pytest.mark.parametrize("show", [report.show_line, report.show_notice])
def test_what_looks_like_markup_is_shown_and_nothing_is_wrapped(show, capsys):
    show("[red]runs/a[/red] " + 300 * "x")
    assert capsys.readouterr().out == "[red]runs/a[/red] " + 300 * "x" + "\n"
