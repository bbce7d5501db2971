"""Trials on the hold-out."""

import json

import numpy as np
import pytest
from benchmarks.accuracy.tuning import (
    BASE,
    TuningOptions,
    describe_changes,
    main,
    parse_changes,
)

from benchmarks.accuracy import tuning
from recipe import data, record
from recipe.console import UserError
from recipe.data import HOLDOUT, Dataset, Loaded
from tests.fake import FRAMEWORK

ROW = dict.fromkeys(tuning.KEPT, 0.5)


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """The arguments of every seed that was trained; nothing is, and the record is empty."""
    calls = []
    images = np.tile(np.arange(6000)[:, None, None] % 256, (1, 28, 28)).astype(np.uint8)
    blanks = Dataset("mnist", images, np.zeros(6000, np.uint8), images[:50] + 1, np.zeros(50, np.uint8))
    monkeypatch.setattr(data, "load", lambda *_: Loaded(blanks, None))
    monkeypatch.setattr(tuning, "load_framework", lambda _: FRAMEWORK)
    monkeypatch.setattr(tuning, "train_seed", lambda *arguments: calls.append(arguments) or ROW)
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    return calls


def test_changes_change_the_base_recipe():
    recipe = parse_changes(("batch=32", "ema_decay=None", "nesterov=False", "lr=0.05"))
    assert (recipe.batch, recipe.ema_decay, recipe.nesterov, recipe.lr) == (32, None, False, 0.05)
    assert recipe.rotation == BASE.rotation
    assert describe_changes(recipe) == "batch=32 lr=0.05 nesterov=False ema_decay=None"


@pytest.mark.parametrize("change", ["batch", "batch=", "speed=3", "name=x", "batch=__import__('os')"])
def test_what_is_no_change_is_refused(change):
    with pytest.raises(UserError, match="--changes"):
        parse_changes((change,))


def test_test_images_are_never_looked_at(trained):
    main(TuningOptions(changes=("epochs=2",)))
    ((_, network, recipe, split, seed, _),) = trained
    assert (network.name, recipe.epochs, seed) == ("net10040", 2, 0)
    assert len(split.val_images) == HOLDOUT["mnist"] and len(split.train_images) == 1000
    assert (split.val_images[:, 0, 0] == np.arange(1000, 6000) % 256).all()


def test_publishing_leaves_out_what_is_on_record(trained, tmp_path, capsys):
    main(TuningOptions(seeds=(0,), publish=True))
    main(TuningOptions(seeds=(0, 1), publish=True))
    main(TuningOptions(seeds=(0,), changes=("batch=32",), publish=True))
    assert [call[4] for call in trained] == [0, 1, 0]
    assert capsys.readouterr().out.count("seed 0 is on record in results/ and was not trained") == 1
    rows = [json.loads(line) for line in (tmp_path / "results" / "tuning.jsonl").read_text().splitlines()]
    assert [(row["seed"], row["changes"], row["split"]) for row in rows] == [
        (0, "", "holdout"),
        (1, "", "holdout"),
        (0, "batch=32", "holdout"),
    ]


def test_a_trial_on_the_digits_is_not_published(trained, monkeypatch, tmp_path):
    monkeypatch.setattr(data, "load", lambda *_: Loaded(data.load_digits(), "no MNIST"))
    with pytest.raises(UserError, match="--publish needs MNIST"):
        main(TuningOptions(publish=True))
    main(TuningOptions())
    assert not list((tmp_path / "results").iterdir())
    assert (tmp_path / "runs" / "bench" / "tuning.jsonl").exists()
