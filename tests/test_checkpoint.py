"""The canonical checkpoint: what goes in comes out, and what is not one is refused in one line."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from recipe import checkpoint as checkpoints
from recipe.checkpoint import (
    Checkpoint,
    Epoch,
    find_checkpoint,
    initial_tensors,
    load_checkpoint,
    read_typed,
    save_checkpoint,
)
from recipe.console import UserError
from recipe.networks import get_network
from recipe.recipes import get_recipe
from tests.helpers import make_config

EPOCH = Epoch(1, 3, 0.1, 2.0, 0.0, float("inf"), 1.0, 2.5, "ab12")


@pytest.fixture(params=["tuned", "reference"])
def checkpoint(request) -> Checkpoint:
    recipe = get_recipe("net9954", request.param)
    tensors = initial_tensors(get_network("net9954"), recipe, 0, "float32")
    return Checkpoint(3, tensors, np.array([2.0, 1.5, 1.0]), [EPOCH], make_config(recipe=recipe))


def test_round_trip(checkpoint, tmp_path):
    path = tmp_path / "deep" / "c.safetensors"
    save_checkpoint(path, checkpoint)
    again = load_checkpoint(path)
    assert (again.step, again.metrics, again.config) == (3, checkpoint.metrics, checkpoint.config)
    np.testing.assert_array_equal(again.losses, checkpoint.losses)
    assert again.tensors.keys() == checkpoint.tensors.keys()
    for name, tensor in checkpoint.tensors.items():
        assert again.tensors[name].dtype == np.float32
        np.testing.assert_array_equal(again.tensors[name], tensor)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], "no temporary file stays"


def test_the_model_is_the_average_where_there_is_one(checkpoint):
    for tensor in checkpoint.tensors.values():
        tensor[...] = 1
    for name in checkpoint.tensors:
        if name.startswith("average/"):
            checkpoint.tensors[name][...] = 2
    expected = 2 if checkpoint.config.recipe.name == "tuned" else 1
    assert checkpoint.model.keys() == {*checkpoint.network.parameters, *checkpoint.network.buffers}
    assert all((tensor == expected).all() for tensor in checkpoint.model.values())


def test_any_truncation_or_altered_byte_is_refused(checkpoint, tmp_path, rng):
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, checkpoint)
    content = path.read_bytes()
    damaged = [content[:length] for length in (0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1)]
    for position in [*range(8), *rng.integers(8, len(content), 100)]:
        altered = bytes([content[position] ^ 1 << int(rng.integers(8))])
        damaged.append(content[:position] + altered + content[position + 1 :])
    for each in damaged:
        path.write_bytes(each)
        with pytest.raises(UserError, match=r"c\.safetensors"):
            load_checkpoint(path)


def test_other_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "none")
    with pytest.raises(UserError, match="cannot read"):
        load_checkpoint(tmp_path)
    stranger = tmp_path / "stranger.safetensors"
    save_file({"weight": np.zeros(3)}, stranger)
    with pytest.raises(UserError, match="not a whole checkpoint"):
        load_checkpoint(stranger)
    monkeypatch.setattr(checkpoints, "MAX_BYTES", 10)
    with pytest.raises(UserError, match="larger than"):
        load_checkpoint(stranger)


@pytest.mark.parametrize("about", ["[]", "{", '{"step": 1}', "[" * 100_000, '{"step": "\\ud800"}', "1" * 500])
def test_json_that_is_not_ours_is_refused_even_if_the_digest_fits(about, tmp_path):
    tensors = {"weight": np.zeros(3)}
    digest = checkpoints._digest(tensors, about)
    save_file(tensors, tmp_path / "c.safetensors", {"lockstep": about, "sha256": digest})
    with pytest.raises(UserError, match="is not what this version writes"):
        load_checkpoint(tmp_path / "c.safetensors")


CHANGES = [
    *({"losses": losses} for losses in (np.zeros(2), np.zeros(3, np.float32))),
    *({"step": step} for step in (3.0, "3", None, True, [])),
    {"tensors": {}},
    *({"metrics": {"lr": value}} for value in ("0.1", None, True, 10**400)),
    {"metrics": {"digest": 5}},
    *({"config": {key: []}} for key in ("data", "recipe", "versions")),
    *({"config": {key: 1}} for key in ("framework", "precision", "split")),
    *({"config": {"seed": value}} for value in (0.0, "0", None, True)),
    {"config": {"versions": {"torch": 2}}},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_an_impossible_state_is_refused_even_if_the_digest_fits(change, checkpoint, tmp_path):
    if "metrics" in change:
        change = {"metrics": [dataclasses.replace(EPOCH, **change["metrics"])]}
    if "config" in change:
        change = {"config": dataclasses.replace(checkpoint.config, **change["config"])}
    save_checkpoint(tmp_path / "c", dataclasses.replace(checkpoint, **change))
    with pytest.raises(UserError, match="is not what this version writes"):
        load_checkpoint(tmp_path / "c")


def test_a_missing_tensor_is_refused_even_if_the_digest_fits(checkpoint, tmp_path):
    del checkpoint.tensors["momentum/conv1.weight"]
    save_checkpoint(tmp_path / "c", checkpoint)
    with pytest.raises(UserError, match="is not what this version writes"):
        load_checkpoint(tmp_path / "c")


def test_a_dataclass_from_json_has_all_its_keys_and_no_others():
    entry = json.loads(json.dumps(dataclasses.asdict(EPOCH)))
    assert read_typed(Epoch, entry) == EPOCH
    for changed in (entry | {"magic": 1}, {key: entry[key] for key in list(entry)[1:]}):
        with pytest.raises(ValueError, match=r"it has other keys: (magic|epoch)"):
            read_typed(Epoch, changed)


def test_weights_are_readable_without_us(checkpoint, tmp_path):
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, checkpoint)
    assert load_file(path)["conv2.weight"].shape == (16, 8, 3, 3)  # OIHW


def test_a_person_means_the_checkpoint_in_a_folder(tmp_path):
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoint.safetensors"
    assert find_checkpoint(tmp_path / "c.safetensors") == tmp_path / "c.safetensors"
