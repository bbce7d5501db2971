"""The trained networks of models/ are what their table says."""

import hashlib
import json

import numpy as np
import pytest

from benchmarks import models, rows
from benchmarks.models import ModelsOptions
from export.images import to_unit
from export.metadata import get_metadata, weights_sha256
from export.structure import read_model
from export.verify import BATCHES, run_model
from recipe.checkpoint import load_checkpoint, state_digest
from recipe.console import UserError
from recipe.networks import NETWORKS, get_network
from recipe.recipes import get_recipe

MODELS = rows.MODEL_LIST.parent
ENTRIES = json.loads(rows.MODEL_LIST.read_text())["models"]
FILES = ("checkpoint.safetensors", "model.onnx", "feature-maps.onnx")
entries = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["folder"])


def test_every_network_is_there_from_each_framework():
    there = [(entry["network"], entry["framework"]) for entry in ENTRIES]
    assert there == [(network, framework) for network in NETWORKS for framework in ("torch", "jax")]
    assert {path.parent.name for path in MODELS.glob("*/*")} == {entry["folder"] for entry in ENTRIES}


@entries
def test_the_files_are_those_of_the_list(entry):
    paths = [MODELS / entry["folder"] / name for name in FILES]
    assert all(path.stat().st_size < 150_000 for path in paths)
    checkpoint = load_checkpoint(paths[0])
    said = {"framework": entry["framework"], "network": entry["network"], "seed": entry["seed"]}
    assert {key: checkpoint.config[key] for key in said} == said
    recipe = get_recipe(entry["network"], "tuned")
    assert checkpoint.config["recipe"] == vars(recipe)
    assert checkpoint.config["threads"] == 1
    assert checkpoint.metrics[-1]["epoch"] == recipe.epochs
    assert checkpoint.metrics[-1]["digest"] == state_digest(checkpoint.tensors) == entry["digest"]
    assert hashlib.sha256(paths[1].read_bytes()).hexdigest() == entry["sha256"]
    assert get_network(entry["network"]).parameter_count == entry["parameters"]
    for path in paths[1:]:
        metadata = get_metadata(read_model(path)[1])
        assert metadata["weights_sha256"] == weights_sha256(checkpoint.model)
        assert float(metadata["accuracy"]) == pytest.approx(entry["accuracy"], abs=5e-5)  # four digits
        assert {key: metadata[key] for key in said} == {key: str(value) for key, value in said.items()}


@entries
def test_it_is_the_seed_in_the_middle(entry):
    same = [row for row in rows.middle_seeds() if rows.model_folder(row) == entry["folder"]]
    assert [row["seed"] for row in same] == [entry["seed"]]
    finals = [row["final"] for row in rows.seeds("tuned") if rows.model_folder(row) == entry["folder"]]
    below = sum(final < same[0]["final"] for final in finals)
    above = sum(final > same[0]["final"] for final in finals)
    assert below <= len(finals) / 2 and above <= len(finals) / 2


@entries
def test_accuracy_on_mnist(entry, mnist):
    for name in FILES[1:]:
        content = (MODELS / entry["folder"] / name).read_bytes()
        logits, _ = run_model(content, to_unit(mnist.val_images), BATCHES[-1])
        assert np.mean(logits.argmax(1) == mnist.val_labels) == pytest.approx(entry["accuracy"], abs=1e-9)


def test_without_the_runs_their_commands_are_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"lacks the runs of these 6 commands"):
        models.main(ModelsOptions())
