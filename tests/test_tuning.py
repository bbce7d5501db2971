"""Trials on the hold-out."""

import json

import pytest

from benchmarks import tuning
from benchmarks.tuning import BASE, TuningOptions, main, parse_changes, parse_network, record, try_seed
from recipe.errors import UserError
from recipe.networks import Average, Conv, MaxPool, Norm, Relu


def test_layers_are_read_as_they_are_written():
    network = parse_network("10 30 10x1 pool 14 average 10x1")
    kinds = [type(layer.operation) for layer in network.layers]
    block = [Conv, Norm, Relu]
    assert kinds == [*block, *block, *block, MaxPool, *block, Average, Conv]
    convolutions = [layer.operation for layer in network.layers if isinstance(layer.operation, Conv)]
    assert [(c.channels, c.kernel, c.pad, c.bias) for c in convolutions] == [
        (10, 3, 1, False), (30, 3, 1, False), (10, 1, 0, False), (14, 3, 1, False), (10, 1, 0, False),
    ]  # fmt: skip
    assert network.parameter_count == 90 + 2700 + 300 + 1260 + 140 + 2 * (10 + 30 + 10 + 14)


@pytest.mark.parametrize("text", ["10 average 9x1", "10 20", "10 swim 10", "10x 10xx", "net1", "pool pool"])
def test_what_is_no_network_is_refused(text):
    with pytest.raises(UserError):
        parse_network(text)


def test_changes_change_the_base_recipe():
    recipe = parse_changes(("batch=32", "ema=None", "nesterov=False", "peak_rate=0.05"))
    assert (recipe.batch, recipe.ema, recipe.nesterov, recipe.peak_rate) == (32, None, False, 0.05)
    assert recipe.rotation == BASE.rotation


@pytest.mark.parametrize("change", ["batch", "batch=", "speed=3", "name=x", "batch=__import__('os')"])
def test_what_is_no_change_is_refused(change):
    with pytest.raises(UserError, match="--changes"):
        parse_changes((change,))


def test_a_trial_is_judged_by_its_last_epoch(digits):
    found = try_seed(parse_network("4 pool 8 average 10x1"), parse_changes(("epochs=2",)), digits, 0)
    assert len(found["accuracies"]) == len(found["val_losses"]) == 2
    assert found["final"] == found["accuracies"][-1]
    assert found["val_loss"] == found["val_losses"][-1]


def test_the_record_keeps_every_trial_and_seed(tmp_path):
    path = tmp_path / "tuning.json"
    for network, seed in (("a", 0), ("a", 1), ("b", 0)):
        record(path, {"network": network, "recipe": {"batch": 1}}, seed, {"final": seed})
    trials = json.loads(path.read_text())["trials"]
    assert [(trial["network"], list(trial["seeds"])) for trial in trials] == [("a", ["0", "1"]), ("b", ["0"])]


def test_test_images_are_never_looked_at(mnist, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(tuning, "try_seed", lambda network, recipe, split, seed: seen.append(split) or FOUND)
    for _ in range(2):
        main(TuningOptions(out=tmp_path / "tuning.json"))
    assert len(seen) == 1, "what is on record is not trained again"
    assert (len(seen[0].train_images), len(seen[0].val_images)) == (55_000, 5_000)
    assert (seen[0].val_images == mnist.train_images[-5000:]).all()


FOUND = {"final": 0.9, "val_loss": 0.3, "train_loss": 0.4, "shifted": 0.9}
