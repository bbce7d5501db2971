"""The trained networks of models/ are what their table says."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from benchmarks import models
from benchmarks.accuracy import recorded_seeds
from benchmarks.models import MODELS, ModelsOptions, folder_of
from export.images import to_unit
from export.verify import BATCHES, run_model
from recipe.checkpoint import load_checkpoint, state_digest
from recipe.console import UserError
from recipe.networks import get_network
from recipe.recipes import get_recipe

ENTRIES = json.loads(models.MODEL_LIST.read_text())["models"]
FILES = ("checkpoint.safetensors", "model.onnx", "feature-maps.onnx")
entries = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["folder"])


def test_every_network_is_there_from_each_framework():
    there = [(entry["network"], entry["framework"]) for entry in ENTRIES]
    last = [row for row in recorded_seeds("tuned", device="cpu") if row["seed"] == models.SEEDS - 1]
    tuned = dict.fromkeys(row["network"] for row in last)
    assert there == [(network, framework) for network in tuned for framework in ("torch", "jax")]


@entries
def test_the_files_are_those_of_the_list(entry):
    checkpoint = load_checkpoint(MODELS / entry["folder"] / FILES[0])
    for key in ("framework", "network", "seed"):
        assert getattr(checkpoint.config, key) == entry[key]
    recipe = get_recipe(entry["network"], "tuned")
    assert checkpoint.config.recipe == recipe
    last = dataclasses.asdict(checkpoint.metrics[-1])
    assert last["epoch"] == recipe.epochs
    assert last["digest"] == state_digest(checkpoint.tensors) == entry["digest"]
    content = (MODELS / entry["folder"] / FILES[1]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    assert get_network(entry["network"]).parameter_count == entry["parameters"]


@entries
def test_it_is_the_seed_in_the_middle(entry):
    chosen = [row["seed"] for row in models.middle_seeds() if folder_of(row) == entry["folder"]]
    assert chosen == [entry["seed"]]
    finals = [
        (row["final"], row["seed"])
        for row in recorded_seeds("tuned", device="cpu")
        if folder_of(row) == entry["folder"] and row["seed"] < models.SEEDS
    ]
    assert len(finals) == models.SEEDS
    middle = next(final for final, seed in finals if seed == entry["seed"])
    assert sum(final < middle for final, _ in finals) <= 5 >= sum(final > middle for final, _ in finals)


@pytest.mark.slow
@entries
def test_accuracy_on_mnist(entry, mnist):
    for name in FILES[1:]:
        content = (MODELS / entry["folder"] / name).read_bytes()
        logits, _ = run_model(content, to_unit(mnist.val_images), BATCHES[-1])
        assert np.mean(logits.argmax(1) == mnist.val_labels) == pytest.approx(entry["accuracy"], abs=1e-9)


def test_without_the_runs_they_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "MODELS", tmp_path)
    with pytest.raises(UserError, match=f"{len(models.middle_seeds())} commands"):
        models.main(ModelsOptions())


def test_a_run_of_another_seed_is_asked_for_again():
    chosen = models.middle_seeds()[0]
    assert models.find_run(chosen)
    assert models.find_run(chosen | {"seed": chosen["seed"] + 1}) is None
