"""Going on with a run: its settings come from its checkpoint, and options that contradict are named."""

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from recipe import run
from recipe.checkpoint import FILE_NAME, load_checkpoint, save_checkpoint
from recipe.console import UserError
from recipe.run import MAX_SEED, TrainOptions
from tests import fake
from tests.helpers import call

# Every setting is another one than the program's own.
OPTIONS = TrainOptions(
    network="net9954",
    recipe="reference",
    dataset="digits",
    epochs=3,
    batch=128,
    seed=5,
    split="holdout",
    precision="float64",
)
LAST = 3 * ((1437 - 300) // 128)


@pytest.fixture(autouse=True, scope="module")
def skip_slow_parts():
    with pytest.MonkeyPatch.context() as patch:
        fake.skip_slow_parts(patch.setattr)
        yield


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """The folder of a run that stopped in its second epoch."""
    out = tmp_path_factory.mktemp("begun") / "run"
    run.train(dataclasses.replace(OPTIONS, out=out, max_steps=11), fake.FRAMEWORK)
    return out


@pytest.fixture
def folder(begun, tmp_path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "run"))


def go_on(path: Path, **changes) -> None:
    run.train(TrainOptions(resume=path, **changes), fake.FRAMEWORK)


def change(folder: Path, **config) -> Path:
    """Give a run's checkpoint another config and return its path."""
    checkpoint = load_checkpoint(folder / FILE_NAME)
    save_checkpoint(folder / FILE_NAME, dataclasses.replace(checkpoint, config=checkpoint.config | config))
    return folder / FILE_NAME


@pytest.mark.parametrize("name", ["", FILE_NAME])
def test_resume_alone_goes_on_in_the_run_s_folder(name, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(fake.FRAMEWORK, "--resume", Path("run") / name) == 0
    assert "going on after step 11" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    run.train(dataclasses.replace(OPTIONS, out=tmp_path / "whole"), fake.FRAMEWORK)
    whole, resumed = (load_checkpoint(tmp_path / name / FILE_NAME) for name in ("whole", "run"))
    assert resumed.step == whole.step == LAST
    assert [entry["step"] for entry in resumed.metrics] == [8, 11, 16, 24]
    np.testing.assert_array_equal(resumed.losses, whole.losses)
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(resumed.tensors[name], tensor)
    for key in ("network", "recipe", "seed", "precision", "split", "data"):
        assert resumed.config[key] == whole.config[key]


def test_a_copy_of_a_checkpoint_goes_on_where_a_new_run_would_be(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.move(folder / FILE_NAME, "copy.safetensors")
    assert call(fake.FRAMEWORK, "--resume", "copy.safetensors") == 0
    assert load_checkpoint(tmp_path / "runs" / "fake-net9954-reference-5" / FILE_NAME).step == LAST


def test_a_finished_run_shows_its_summary_and_is_a_success(folder, capsys):
    assert call(fake.FRAMEWORK, "--resume", folder) == 0
    summary = capsys.readouterr().out.splitlines()[-3:]
    (folder / "curves.png").unlink()  # as if the run had been killed before it drew them
    for notice in ("completed the files in", None):
        before = (folder / FILE_NAME).read_bytes()
        assert call(fake.FRAMEWORK, "--resume", folder) == 0
        printed = capsys.readouterr().out
        assert "is finished: step 24 is its last; nothing was trained" in printed
        assert printed.splitlines()[-3:] == summary
        assert ("completed the files in" in printed) == bool(notice)
        assert (folder / FILE_NAME).read_bytes() == before
        assert (folder / "curves.png").exists()
    assert call(fake.FRAMEWORK, "--resume", folder, "--max-steps", LAST) == 0


def test_max_steps_before_the_checkpoint_s_are_refused(folder):
    with pytest.raises(UserError, match=r"--max-steps 10: .* is at step 11 already; give more"):
        go_on(folder, max_steps=10)
    go_on(folder, max_steps=11)  # which is where it stopped
    go_on(folder, max_steps=12)
    assert load_checkpoint(folder / FILE_NAME).step == 12


def test_the_same_options_again_are_no_contradiction(folder):
    run.train(dataclasses.replace(OPTIONS, resume=folder), fake.FRAMEWORK)
    assert load_checkpoint(folder / FILE_NAME).step == LAST


OTHERS = {
    **{"network": "net10040", "recipe": "tuned", "epochs": 4, "batch": 64},
    **{"seed": 0, "precision": "float32", "split": "test", "dataset": "mnist"},
}


def test_a_network_of_ones_own_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = dataclasses.replace(OPTIONS, network="4  pool 4 average 10x1", max_steps=11)
    run.train(options, fake.FRAMEWORK)
    folder = Path(f"runs/{fake.FRAMEWORK.name}-net236-5aee84-reference-5")
    assert load_checkpoint(folder / FILE_NAME).network.name == "4 pool 4 average 10x1"
    go_on(folder, network="4 pool  4 average 10x1")
    assert load_checkpoint(folder / FILE_NAME).step == LAST
    with pytest.raises(UserError, match=re.escape("--network 4 pool 4 average 10x1; leave out --network")):
        go_on(folder, network="net9954")


@pytest.mark.parametrize("names", [[name] for name in OTHERS] + [list(OTHERS)], ids="+".join)
def test_contradicting_options_are_named_all_at_once(names, begun):
    flags = [f"--{name}" for name in names]
    theirs = ", ".join(f"{flag} {getattr(OPTIONS, name)}" for flag, name in zip(flags, names, strict=True))
    words = f"{begun / FILE_NAME} is of a run with {theirs}; leave out {', '.join(flags)}"
    with pytest.raises(UserError, match=f"^{re.escape(words)}$"):
        go_on(begun, **{name: OTHERS[name] for name in names})


def test_resume_needs_a_path(begun, tmp_path, capsys):
    assert call(fake.FRAMEWORK, "--resume") == 2
    assert "Missing value for argument '--resume'" in capsys.readouterr().err
    for path in (Path(), tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="there is no checkpoint"):
            go_on(path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"recipe": {"lr": 0.5}}, "recipe.lr 0.5; in this version reference has 0.01; train anew"),
        ({"recipe": {"magic": 1}}, "recipe.magic 1; in this version reference has (nothing)"),
        ({"recipe": {"epochs": 0}}, "recipe.epochs 0; in this version reference has 19"),
        ({"recipe": {"epochs": "3"}}, "recipe.epochs 3; in this version reference has 19"),
        ({"recipe": {"batch": 10**6}}, "recipe.batch 1000000; in this version"),
        ({"recipe": {"name": "best"}}, "unknown recipe 'best'; choose one of: tuned, reference"),
        ({"precision": "float16"}, "precision float16; known: float32, float64, bfloat16"),
        ({"split": "all"}, "split all; known: test, holdout"),
        ({"data": {"name": "cifar"}}, "data.name cifar; known: mnist, digits"),
        ({"data": {"fingerprint": "123"}}, "was trained on other images: fingerprint 123, here"),
        ({"seed": -1}, "seed -1, which is out of range"),
        ({"seed": MAX_SEED + 1}, "seed 9223372036854775808, which is out of range"),
        ({"network": "net1"}, "unknown network 'net1'"),
    ],
)
def test_a_checkpoint_with_settings_that_this_version_lacks_is_refused(config, words, folder, capsys):
    old = load_checkpoint(folder / FILE_NAME).config
    nested = {key: old[key] | value for key, value in config.items() if isinstance(value, dict)}
    if "network" in config:  # which not even reading a checkpoint allows
        content = (folder / FILE_NAME).read_bytes()
        (folder / FILE_NAME).write_bytes(content.replace(b'\\"net9954\\"', b'\\"net1\\"   '))
    else:
        change(folder, **config | nested)
    assert call(fake.FRAMEWORK, "--resume", folder) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert words in errors


@pytest.mark.parametrize(
    "key", ["recipe.name", "seed", "precision", "split", "data.name", "data.fingerprint"]
)
def test_a_checkpoint_without_a_setting_is_refused(key, folder):
    config = load_checkpoint(folder / FILE_NAME).config
    *outer, name = key.split(".")
    part = config[outer[0]] if outer else config
    del part[name]
    save_checkpoint(
        folder / FILE_NAME, dataclasses.replace(load_checkpoint(folder / FILE_NAME), config=config)
    )
    with pytest.raises(UserError, match=f"config lacks {key}; use one that a training run wrote"):
        go_on(folder)


def test_a_long_value_in_a_checkpoint_is_cut_in_the_message(folder):
    for length, shown in ((100, 100 * "x"), (101, "'xxxxxxxxxxxx...xxxxxxxxxxxxx'")):
        with pytest.raises(UserError, match=re.escape(f"a run with precision {shown}; known")):
            go_on(change(folder, precision=length * "x"))


def test_a_model_without_the_losses_of_its_steps_is_no_run_to_go_on_with(folder):
    checkpoint = load_checkpoint(folder / FILE_NAME)
    save_checkpoint(folder / FILE_NAME, dataclasses.replace(checkpoint, losses=np.empty(0)))
    with pytest.raises(UserError, match="lacks the losses of its steps: it is a model to use"):
        go_on(folder)


def test_a_checkpoint_without_the_metrics_of_its_epochs_is_refused(folder):
    checkpoint = load_checkpoint(folder / FILE_NAME)
    assert checkpoint.metrics[0].pop("val_loss") > 0
    save_checkpoint(folder / FILE_NAME, checkpoint)
    with pytest.raises(UserError, match=r"lacks the metrics of its epochs; use another checkpoint"):
        go_on(folder)
