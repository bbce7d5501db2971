"""Going on with a run: its settings come from its checkpoint, and options that contradict are named."""

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from recipe import run
from recipe.checkpoint import FILE_NAME, Images, load_checkpoint, save_checkpoint
from recipe.console import UserError
from recipe.run import MAX_SEED, TrainOptions
from tests import fake
from tests.helpers import call

# Every setting is another one than the program's own.
OPTIONS = {
    **{"network": "net9954", "recipe": "reference", "dataset": "digits", "epochs": 3, "batch": 128},
    **{"seed": 5, "split": "holdout", "precision": "float64"},
}
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
    main(TrainOptions(**OPTIONS, out=out, max_steps=11))
    return out


@pytest.fixture
def folder(begun, tmp_path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "run"))


def main(options: TrainOptions) -> None:
    run.train(options, fake.Trainer, fake.Devices())


def go_on(path: Path, **changes) -> None:
    main(TrainOptions(resume=path, **changes))


def change(folder: Path, **changes) -> Path:
    """Give a run's checkpoint another config and return its path."""
    checkpoint = load_checkpoint(folder / FILE_NAME)
    config = dataclasses.replace(checkpoint.config, **changes)
    save_checkpoint(folder / FILE_NAME, dataclasses.replace(checkpoint, config=config))
    return folder / FILE_NAME


@pytest.mark.parametrize("name", ["", FILE_NAME])
def test_resume_alone_goes_on_in_the_run_s_folder(name, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(main, "--resume", Path("run") / name) == 0
    assert "going on after step 11" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    main(TrainOptions(**OPTIONS, out=tmp_path / "whole"))
    whole, resumed = (load_checkpoint(tmp_path / name / FILE_NAME) for name in ("whole", "run"))
    assert resumed.step == whole.step == LAST
    assert [entry.step for entry in resumed.metrics] == [8, 11, 16, 24]
    np.testing.assert_array_equal(resumed.losses, whole.losses)
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(resumed.tensors[name], tensor)
    for key in ("network", "recipe", "seed", "precision", "split", "data"):
        assert getattr(resumed.config, key) == getattr(whole.config, key)


def test_a_copy_of_a_checkpoint_goes_on_where_a_new_run_would_be(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.move(folder / FILE_NAME, "copy.safetensors")
    assert call(main, "--resume", "copy.safetensors") == 0
    assert load_checkpoint(tmp_path / "runs" / "fake-net9954-reference-5-digits" / FILE_NAME).step == LAST


def test_a_finished_run_shows_its_summary_and_is_a_success(folder, capsys):
    assert call(main, "--resume", folder) == 0
    summary, before = capsys.readouterr().out.splitlines()[-3:], (folder / FILE_NAME).read_bytes()
    assert call(main, "--resume", folder, "--max-steps", LAST) == 0
    printed = capsys.readouterr().out
    assert "is finished: step 24 is its last; nothing was trained" in printed
    assert printed.splitlines()[-3:] == summary
    assert (folder / FILE_NAME).read_bytes() == before


def test_max_steps_before_the_checkpoint_s_are_refused(folder):
    with pytest.raises(UserError, match=r"--max-steps 10: .* is at step 11 already; give more"):
        go_on(folder, max_steps=10)
    go_on(folder, max_steps=11)  # which is where it stopped
    main(TrainOptions(**OPTIONS, resume=folder, max_steps=12))  # the same options are no contradiction
    assert load_checkpoint(folder / FILE_NAME).step == 12


OTHERS = {
    **{"network": "net10040", "recipe": "tuned", "epochs": 4, "batch": 64},
    **{"seed": 0, "precision": "float32", "split": "test", "dataset": "mnist"},
}


def test_a_network_of_ones_own_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(TrainOptions(**OPTIONS | {"network": "4  pool 4 average 10x1", "max_steps": 11}))
    folder = Path("runs/fake-net236-5aee84-reference-5-digits")
    assert load_checkpoint(folder / FILE_NAME).network.name == "4 pool 4 average 10x1"
    go_on(folder, network="4 pool  4 average 10x1")
    assert load_checkpoint(folder / FILE_NAME).step == LAST
    with pytest.raises(UserError, match=re.escape("--network 4 pool 4 average 10x1; leave out --network")):
        go_on(folder, network="net9954")


@pytest.mark.parametrize("names", [[name] for name in OTHERS] + [list(OTHERS)], ids="+".join)
def test_contradicting_options_are_named_all_at_once(names, begun):
    flags = [f"--{name}" for name in names]
    theirs = ", ".join(f"{flag} {OPTIONS[name]}" for flag, name in zip(flags, names, strict=True))
    words = f"{begun / FILE_NAME} is of a run with {theirs}; leave out {', '.join(flags)}"
    with pytest.raises(UserError, match=f"^{re.escape(words)}$"):
        go_on(begun, **{name: OTHERS[name] for name in names})


def test_resume_needs_a_path(begun, tmp_path, capsys):
    assert call(main, "--resume") == 2
    assert "argument --resume: expected one argument" in capsys.readouterr().err
    for path in (Path(), tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="there is no checkpoint"):
            go_on(path)


def with_recipe(checkpoint, **changes):
    return {"recipe": dataclasses.replace(checkpoint.config.recipe, **changes)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (lambda c: with_recipe(c, lr=0.5), "recipe.lr 0.5; in this version reference has 0.01; train anew"),
        (lambda c: with_recipe(c, epochs=0), "its epochs 0 is out of range"),
        (lambda c: with_recipe(c, name="best"), "unknown recipe 'best'; choose one of: tuned, reference"),
        (lambda c: {"precision": "float16"}, "precision is 'float16'"),
        (lambda c: {"data": Images("cifar", "1")}, "data.name is 'cifar'"),  # pyright: ignore
        (lambda c: {"data": Images("digits", "123")}, "was trained on other images: fingerprint 123, here"),
        (lambda c: {"seed": MAX_SEED + 1}, "its seed 9223372036854775808 is out of range"),
        (lambda c: {"network": "net1"}, "unknown network 'net1'"),
    ],
)
def test_a_checkpoint_with_settings_that_this_version_lacks_is_refused(changes, words, folder, capsys):
    change(folder, **changes(load_checkpoint(folder / FILE_NAME)))
    assert call(main, "--resume", folder) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert words in errors


@pytest.mark.parametrize("changes", [{"losses": np.empty(0)}, {"metrics": []}])
def test_a_model_without_the_losses_of_its_steps_is_no_run_to_go_on_with(changes, folder):
    checkpoint = load_checkpoint(folder / FILE_NAME)
    save_checkpoint(folder / FILE_NAME, dataclasses.replace(checkpoint, **changes))
    with pytest.raises(UserError, match="lacks the losses of its steps: it is a model to use"):
        go_on(folder)
